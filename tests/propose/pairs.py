"""Pairs of proposals with what every rung of the fingerprint must say about them: "=" the same, "!" different.

The four signs are those of whitespace, tree, graph and recipe.
"""

from dataclasses import dataclass

BASE = """
import torch
import torch.nn as nn
import torch.nn.functional as F

SCALE = 2


def supported_hyperparameters():
    return {'lr', 'momentum', 'dropout'}


def width_of(stage, base=8):
    return base * stage


class Block(nn.Module):
    def __init__(self, cin, cout, kernel=3):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        return y


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        self.stem = Block(in_shape[1], width_of(1))
        self.body = Block(width_of(1), width_of(1))
        self.mode = 'a b'
        self.drop = nn.Dropout(prm['dropout'])
        self.fc = nn.Linear(8 * 4 * 4, out_shape[0])

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.body(x)
            x = F.max_pool2d(x, SCALE)
        if self.mode == 'ab':
            x = x * 3
        x = x + torch.sigmoid(x)
        x = torch.flatten(x, 1)
        return self.fc(self.drop(x))

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = (nn.CrossEntropyLoss().to(self.device),)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        self.train()
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria[0](self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 3)
            self.optimizer.step()
"""


@dataclass(frozen=True)
class Pair:
    name: str
    a: str
    b: str
    says: str
    """One sign a rung, in the order whitespace, tree, graph, recipe."""


def edited(*changes: tuple[str, str], source: str = BASE) -> str:
    """The base file with texts replaced; each must be there."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return source


def changed(name: str, says: str, *changes: tuple[str, str]) -> Pair:
    return Pair(name, BASE, edited(*changes), says)


IMPORTS = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"
LOOP = "        for _ in range(3):\n            x = self.body(x)\n            x = F.max_pool2d(x, SCALE)\n"
PASS = "            x = self.body(x)\n            x = F.max_pool2d(x, SCALE)\n"
HELPER = "def width_of(stage, base=8):\n    return base * stage\n"
RECIPE = BASE[BASE.index("    def train_setup") :]
FORWARD = BASE[BASE.index("    def forward(self, x):\n        x = self.stem") : BASE.index("    def train_setup")]
HYPER = BASE[BASE.index("def supported") : BASE.index("def width_of")]
BACKWARD = "            loss.backward()\n            nn.utils.clip_grad_norm_(self.parameters(), 3)\n"

SAME = [
    changed("blank lines", "====", ("\n\n", "\n\n\n \n")),
    changed("trailing blanks", "====", ("return y\n", "return y   \n")),
    changed("blanks between tokens", "====", ("(cin, cout, kernel, padding=1", "( cin,cout ,kernel, padding = 1")),
    changed("depth of indentation", "====", ("    ", "  ")),
    changed("tabs", "====", ("    ", "\t")),
    changed("line break in brackets", "====", ("(prm['dropout'])", "(\n            prm['dropout'])")),
    changed("line ends of Windows", "====", ("\n", "\r\n")),
    changed("comment", "!===", ("        return y\n", "        # the result\n        return y\n")),
    changed("docstring", "!===", ("    def forward", '    """A block."""\n\n    def forward')),
    changed("annotations", "!===", ("(self, x)", "(self, x: torch.Tensor) -> torch.Tensor")),
    changed("annotated variable", "!===", ("        y = F", "        y: torch.Tensor = F")),
    changed("quotes", "!===", ("'", '"')),
    changed("parentheses", "!===", ("return base * stage", "return (base * stage)")),
    changed("local variable", "!===", ("y = F", "out = F"), ("return y", "return out")),
    changed("argument", "!===", ("cin", "channels"), ("stage", "level")),
    changed("parameters of the contract", "!===", ("prm", "hp"), ("in_shape", "shape")),
    changed("attribute", "!===", ("self.stem", "self.entry"), ("self.fc", "self.head")),
    changed("attribute of a block", "!===", ("self.conv", "self.c1"), ("self.bn", "self.norm")),
    changed("attribute that the recipe reads", "!===", ("self.device", "self.dev")),
    changed("helper class", "!===", ("Block", "Unit")),
    changed("helper function", "!===", ("width_of", "channels_at")),
    changed("object is not called self", "!===", ("self", "this")),
    changed(
        "long super",
        "!===",
        ("super().__init__()\n        self.conv", "super(Block, self).__init__()\n        self.conv"),
    ),
    changed("from torch import nn", "!===", ("import torch.nn as nn", "from torch import nn")),
    changed(
        "torch.nn in full",
        "!===",
        ("import torch.nn as nn\n", ""),
        ("nn.", "torch.nn."),
        ("torch.torch.nn.functional as", "torch.nn.functional as"),
    ),
    changed(
        "from torch.nn import functional",
        "!===",
        ("import torch.nn.functional as F", "from torch.nn import functional as F"),
    ),
    changed(
        "a layer by its own name",
        "!===",
        (IMPORTS, IMPORTS + "from torch.nn import Dropout as D\n"),
        ("nn.Dropout", "D"),
    ),
    changed("order of imports", "!===", (IMPORTS, "".join(reversed(IMPORTS.splitlines(keepends=True))))),
    changed("unused import", "!===", (IMPORTS, IMPORTS + "import math\n")),
    changed("unused function", "!===", (HELPER, HELPER + "\n\ndef unused():\n    return 7\n")),
    changed("order of functions", "!===", (HELPER, ""), (HYPER, HELPER + "\n\n" + HYPER)),
    changed("order of methods", "!===", (FORWARD, ""), (RECIPE, RECIPE + "\n" + FORWARD)),
    changed("main block", "!===", (RECIPE, RECIPE + "\n\nif __name__ == '__main__':\n    print(Net)\n")),
    changed("constant folded", "!===", ("8 * 4 * 4", "128")),
    changed("constant in place", "!===", ("SCALE = 2\n", ""), ("x, SCALE", "x, 2")),
    changed("spelling of a number", "!===", ("* 3\n", "* 0x3\n")),
    changed(
        "keyword for a position",
        "!===",
        ("nn.Conv2d(cin, cout, kernel", "nn.Conv2d(in_channels=cin, out_channels=cout, kernel_size=kernel"),
    ),
    changed("order of keywords", "!===", ("padding=1, bias=False", "bias=False, padding=1")),
    changed("default written out", "!===", ("padding=1,", "padding=1, stride=1,")),
    changed("keyword of a helper", "!===", ("(in_shape[1], width_of(1))", "(cout=width_of(1), cin=in_shape[1])")),
    changed(
        "default of a helper written out",
        "!===",
        ("self.stem = Block(in_shape[1], width_of(1))", "self.stem = Block(in_shape[1], width_of(1, 8), 3)"),
    ),
    Pair(
        "default that is never used",
        edited(("width_of(1))", "width_of(1), 3)")),
        edited(("width_of(1))", "width_of(1), 3)"), ("kernel=3", "kernel=5")),
        "!===",
    ),
    changed(
        "pass and return None",
        "!===",
        ("        self.train()\n", "        self.train()\n        pass\n"),
        ("            self.optimizer.step()\n", "            self.optimizer.step()\n        return None\n"),
    ),
    changed(
        "kept for nobody",
        "!===",
        ("        self.device = device\n", "        self.device = device\n        self.lr = prm['lr']\n"),
    ),
    changed("loop unrolled", "!!==", (LOOP, PASS.replace("            ", "        ") * 3)),
    changed("another iterable", "!!==", ("for _ in range(3)", "for _ in [0, 1, 2]")),
    changed("functional as layer", "!!==", ("F.relu(self.bn(self.conv(x)))", "nn.ReLU()(self.bn(self.conv(x)))")),
    changed("in place", "!!==", ("F.relu(self.bn(self.conv(x)))", "F.relu(self.bn(self.conv(x)), inplace=True)")),
    changed(
        "layer that is never used",
        "!!==",
        ("        self.mode", "        self.spare = nn.Linear(9, 9)\n        self.mode"),
    ),
    changed("layer that does nothing", "!!==", ("self.fc(self.drop(x))", "self.fc(self.drop(nn.Identity()(x)))")),
    changed("view for flatten", "!!==", ("torch.flatten(x, 1)", "x.view(x.size(0), -1)")),
    changed("sides of a sum", "!!==", ("x + torch.sigmoid(x)", "torch.sigmoid(x) + x")),
    changed(
        "order of making layers",
        "!!==",
        ("        self.fc = nn.Linear(8 * 4 * 4, out_shape[0])\n", ""),
        ("        self.drop =", "        self.fc = nn.Linear(8 * 4 * 4, out_shape[0])\n        self.drop ="),
    ),
    changed(
        "block written into the network", "!!==", ("x = self.stem(x)", "x = F.relu(self.stem.bn(self.stem.conv(x)))")
    ),
    changed("branch that is never taken", "!!==", ("x = x * 3", "x = x * 4")),
]

OTHER = [
    changed("width", "!!!=", ("base=8", "base=12"), ("8 * 4 * 4", "12 * 4 * 4")),
    changed("kernel", "!!!=", ("padding=1, bias", "padding=2, bias"), ("kernel=3", "kernel=5")),
    changed(
        "stride",
        "!!!=",
        ("padding=1, bias", "padding=1, stride=2, bias"),
        ("range(3)", "range(0)"),
        ("8 * 4 * 4", "8 * 16 * 16"),
    ),
    changed("bias", "!!!=", ("bias=False", "bias=True")),
    changed("operation", "!!!=", ("F.relu", "F.gelu")),
    changed("missing normalisation", "!!!=", ("self.bn(self.conv(x))", "self.conv(x)")),
    changed("backbone", "!!!=", ("F.relu(self.bn(self.conv(x)))", "self.bn(self.conv(F.relu(x)))")),
    changed("pooling", "!!!=", ("F.max_pool2d", "F.avg_pool2d")),
    changed("another layer", "!!!=", ("x = self.stem(x)", "x = self.body(self.stem(x))")),
    changed(
        "weights shared or not",
        "!!!=",
        (LOOP, LOOP.replace("self.body(x)", "(self.body if _ else self.last)(x)")),
        ("        self.mode", "        self.last = Block(8, 8)\n        self.mode"),
    ),
    changed("number of turns", "!!!=", ("range(3)", "range(2)"), ("8 * 4 * 4", "8 * 8 * 8")),
    changed("probability", "!!!=", ("prm['dropout']", "0.5")),
    changed("another hyper-parameter", "!!!=", ("prm['dropout']", "prm['momentum']")),
    changed("sum or product", "!!!=", ("x + torch", "x * torch")),
    Pair(
        "sides of a difference",
        edited(("x + torch.sigmoid(x)", "x - torch.sigmoid(x)")),
        edited(("x + torch.sigmoid(x)", "torch.sigmoid(x) - x")),
        "!!!=",
    ),
    Pair(
        "order of joining",
        edited(("x + torch.sigmoid(x)", "torch.cat([x, -x], 1)[:, :8]")),
        edited(("x + torch.sigmoid(x)", "torch.cat([-x, x], 1)[:, :8]")),
        "!!!=",
    ),
    Pair(
        "statement out of the loop",
        edited((LOOP, LOOP + "            x = x * 0.5\n")),
        edited((LOOP, LOOP + "        x = x * 0.5\n")),
        "!!!=",
    ),
    changed("blank in a string", "!!!=", ("self.mode = 'a b'", "self.mode = 'ab'")),
    changed(
        "evaluation alone", "!!!=", ("x = x * 3", "x = x * 3\n        if not self.training:\n            x = x * 2")
    ),
    Pair(
        "number of another kind",
        edited(("x + torch", "x * 2 + torch")),
        edited(("x + torch", "x * 2.0 + torch")),
        "!!==",
    ),
    changed(
        "initialisation",
        "!!=!",
        ("        self.mode", "        nn.init.zeros_(self.stem.conv.weight)\n        self.mode"),
    ),
    changed(
        "frozen layer", "!!!=", ("        self.mode", "        self.stem.requires_grad_(False)\n        self.mode")
    ),
    changed(
        "optimizer",
        "!==!",
        (
            "torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])",
            "torch.optim.Adam(self.parameters(), lr=prm['lr'])",
        ),
    ),
    changed("clipping before or after", "!==!", (BACKWARD, "".join(reversed(BACKWARD.splitlines(keepends=True))))),
    changed("clipping bound", "!==!", ("(), 3)", "(), 1)")),
    changed("smoothed loss", "!==!", ("CrossEntropyLoss()", "CrossEntropyLoss(label_smoothing=0.1)")),
    changed("fixed momentum", "!==!", ("momentum=prm['momentum']", "momentum=0.9")),
    changed(
        "steps in each batch",
        "!==!",
        (
            "            self.optimizer.step()\n",
            "            self.optimizer.step()\n            self.optimizer.step()\n",
        ),
    ),
    changed(
        "which weights are clipped",
        "!==!",
        ("clip_grad_norm_(self.parameters()", "clip_grad_norm_(self.fc.parameters()"),
    ),
    changed(
        "value kept for the recipe",
        "!==!",
        ("        self.device = device\n", "        self.device = device\n        self.lr = 0.1\n"),
        ("lr=prm['lr']", "lr=self.lr"),
    ),
    changed("seed", "!!=!", ("SCALE = 2\n", "SCALE = 2\ntorch.manual_seed(1)\n")),
    changed("module that may be missing", "!!!=", (IMPORTS, IMPORTS + "import no_such_module\n")),
    Pair(
        "names as text",
        edited(("self.stem(x)", "getattr(self, 'stem')(x)")),
        edited(("self.stem(x)", "getattr(self, 'stem')(x)"), ("self.stem =", "self.entry =")),
        "!!!=",
    ),
    Pair(
        "parameters exchanged",
        edited(
            ("width_of(1))", "width_of(1))"),
            ("Block(in_shape[1], width_of(1))", "Block(cin=in_shape[1], cout=width_of(1))"),
        ),
        edited(
            ("cin, cout, kernel=3", "cout, cin, kernel=3"),
            ("Block(in_shape[1], width_of(1))", "Block(cin=in_shape[1], cout=width_of(1))"),
            ("nn.Conv2d(cin, cout", "nn.Conv2d(cout, cin"),
            ("BatchNorm2d(cout)", "BatchNorm2d(cin)"),
        ),
        "!!!=",
    ),
    Pair(
        "in place, seen through the input",
        edited(("x = x + torch.sigmoid(x)", "y = F.relu(x - 1)\n        x = x + y"), ("x = x * 3", "pass")),
        edited(
            ("x = x + torch.sigmoid(x)", "x = x - 1\n        y = F.relu_(x)\n        x = x + y"), ("x = x * 3", "pass")
        ),
        "!!!=",
    ),
]

PAIRS = SAME + OTHER
