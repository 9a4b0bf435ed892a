"""A plan of the grammar as source text in the form of the contract.

The text of a plan is always the same program; a `Style` says how it looks: names, the form of imports, keywords or positions,
comments, indentation, the order of definitions. Language models differ in just these ways between two answers that mean
the same, so files of one plan in different styles are what a fingerprint has to see through.
"""

import re
from dataclasses import dataclass
from random import Random

from befit.propose.grammar import Plan, Stage

_NAMES: dict[str, tuple[str, ...]] = {
    "Block": ("Block", "ConvBlock", "BasicUnit", "FeatureLayer"),
    "conv": ("conv", "conv1", "main_path", "c"),
    "point": ("point", "pointwise", "mix", "pw"),
    "norm_": ("norm_", "bn", "normalise", "n"),
    "act": ("act", "activation_fn", "nonlinearity", "a"),
    "skip": ("skip", "shortcut", "residual_path", "identity"),
    "features": ("features", "backbone", "body", "layers"),
    "head": ("head", "classifier", "fc", "out_layer"),
    "patches": ("patches", "embed", "tokenizer", "stem"),
    "place": ("place", "pos_embed", "position", "pe"),
    "first": ("first", "norm1", "pre_norm", "ln_a"),
    "second": ("second", "norm2", "post_norm", "ln_b"),
    "triple": ("triple", "qkv", "to_qkv", "projections"),
    "joined": ("joined", "proj", "to_out", "mixer"),
    "expand": ("expand", "mlp", "ffn", "feedforward"),
    "final": ("final", "last_norm", "ln_f", "norm_out"),
    "cin": ("cin", "in_channels", "inp", "c_in"),
    "cout": ("cout", "out_channels", "planes", "c_out"),
    "ks": ("ks", "kernel", "k", "kernel_size"),
    "steps": ("step", "stride", "s", "strides"),
    "x": ("x", "inputs", "images", "t"),
    "y": ("y", "out", "hidden", "z"),
    "image_batch": ("image_batch", "inputs", "batch_x", "data"),
    "targets": ("targets", "labels", "batch_y", "target"),
    "logits": ("logits", "outputs", "pred", "scores"),
    "loss": ("loss", "batch_loss", "err", "objective"),
    "inputs_shape": ("in_shape", "shape_in", "input_shape"),
    "outputs_shape": ("out_shape", "shape_out", "output_shape"),
    "values": ("prm", "params", "hp"),
    "place_of": ("device", "dev", "target_device"),
}
_REMARKS = ("# extract features", "# TODO: tune this", "# regularisation", "# as in the baseline", "#")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a file looks; nothing of it changes what the file does."""

    names: tuple[tuple[str, str], ...] = ()
    """(name in the template, name in the file); attributes and variables keep apart in every style."""
    indent: str = "    "
    imports: int = 0
    """0: `import torch.nn as nn`, 1: `from torch import nn`, 2: `torch.nn` in full."""
    keywords: bool = False
    long_super: bool = False
    annotated: bool = False
    remarks: float = 0.0
    """Share of lines that get a comment or an empty line before them."""
    documented: bool = False
    recipe_first: bool = False
    """Whether the training methods stand before the others."""
    double_quotes: bool = False
    seed: int = 0

    @classmethod
    def draw(cls, random: Random) -> "Style":
        """Any style."""
        names = tuple((name, random.choice(choices)) for name, choices in _NAMES.items())
        return cls(
            names=_distinct(names),
            indent=random.choice(("    ", "  ", "\t")),
            imports=random.randrange(3),
            keywords=random.random() < 0.5,
            long_super=random.random() < 0.5,
            annotated=random.random() < 0.5,
            remarks=random.choice((0.0, 0.2)),
            documented=random.random() < 0.5,
            recipe_first=random.random() < 0.5,
            double_quotes=random.random() < 0.5,
            seed=random.randrange(2**31),
        )


def _distinct(names: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Two names of the template never become one."""
    used, found = set[str](), list[tuple[str, str]]()
    for name, chosen in names:
        taken = chosen if chosen not in used else f"{chosen}_{len(used)}"
        used.add(taken)
        found.append((name, taken))
    return tuple(found)


def render(plan: Plan, style: Style | None = None) -> str:
    """Source text of a plan."""
    style = style or Style()
    writer = {"mlp": _mlp, "attention": _attention}.get(plan.family, _convolutional)
    helper, made, forward = writer(plan)
    init = ["def __init__(self, inputs_shape, outputs_shape, values, place_of):", "    super().__init__()", *made]
    methods = [[*init, "    self.device = place_of"], forward]
    order = [*_recipe(plan), *methods] if style.recipe_first else [*methods, *_recipe(plan)]
    net = ["class Net(nn.Module):"]
    if style.documented:
        net.append('    """A network for images."""')
    for method in order:
        net += ["    " + line for line in method] + [""]
    keys = ["'dropout'"] if plan.dropout else []
    keys += ["'lr'"] + (["'momentum'"] if plan.recipe.optimizer == "SGD" else [])
    names = ["def supported_hyperparameters():", f"    return {{{', '.join(keys)}}}", ""]
    parts = [*helper, "", *net, *names] if style.recipe_first else [*names, *helper, "", *net]
    return _styled(["import torch", "import torch.nn as nn", "", *parts], style)


def _norm(plan: Plan, width: str) -> str:
    return {"batch": f"nn.BatchNorm2d({width})", "group": f"nn.GroupNorm(4, {width})", "none": ""}[plan.norm]


def _convolutional(plan: Plan) -> tuple[list[str], list[str], list[str]]:
    norm, bias = _norm(plan, "cout"), "" if plan.norm == "none" else ", bias=False"
    block = ["class Block(nn.Module):", "    def __init__(self, cin, cout, ks, steps=1):", "        super().__init__()"]
    if plan.separable:
        block.append(
            "        self.conv = nn.Conv2d(cin, cin, ks, stride=steps, padding=ks // 2, groups=cin, bias=False)"
        )
        block.append(f"        self.point = nn.Conv2d(cin, cout, 1{bias})")
    else:
        block.append(f"        self.conv = nn.Conv2d(cin, cout, ks, stride=steps, padding=ks // 2{bias})")
    if norm:
        block.append(f"        self.norm_ = {norm}")
    block.append(f"        self.act = nn.{plan.activation}()")
    if plan.family == "residual":
        block += [
            "        if cin == cout and steps == 1:",
            "            self.skip = nn.Identity()",
            "        else:",
            "            self.skip = nn.Conv2d(cin, cout, 1, stride=steps, bias=False)",
        ]
    block += ["", "    def forward(self, x):", "        y = self.conv(x)"]
    block += ["        y = self.point(y)"] if plan.separable else []
    block += ["        y = self.norm_(y)"] if norm else []
    added = " + self.skip(x)" if plan.family == "residual" else ""
    block += [f"        return self.act(y){added}", ""]
    layers, channels = list[str](), "inputs_shape[1]"
    for stage in plan.stages:
        layers += _stage_layers(stage, channels)
        channels = str(stage.width)
    layers += ["nn.AdaptiveAvgPool2d(1)", "nn.Flatten()"]
    made = [
        "    self.features = nn.Sequential(",
        *(f"        {layer}," for layer in layers),
        "    )",
        *_head(plan, channels),
    ]
    return block, made, ["def forward(self, x):", "    return self.head(self.features(x))"]


def _stage_layers(stage: Stage, channels: str) -> list[str]:
    layers = list[str]()
    for place in range(stage.blocks):
        step = ", 2" if stage.down == "stride" and place == 0 else ""
        layers.append(f"Block({channels}, {stage.width}, {stage.kernel}{step})")
        channels = str(stage.width)
    pool = {"max": "nn.MaxPool2d(2)", "avg": "nn.AvgPool2d(2)"}.get(stage.down)
    return [*layers, pool] if pool else layers


def _head(plan: Plan, width: str) -> list[str]:
    linear = f"nn.Linear({width}, outputs_shape[0])"
    return [
        f"    self.head = nn.Sequential(nn.Dropout(values['dropout']), {linear})"
        if plan.dropout
        else f"    self.head = {linear}"
    ]


def _mlp(plan: Plan) -> tuple[list[str], list[str], list[str]]:
    layers, before = ["nn.Flatten()"], "inputs_shape[1] * inputs_shape[2] * inputs_shape[3]"
    for stage in plan.stages:
        layers.append(f"nn.Linear({before}, {stage.width})")
        norm = {"batch": f"nn.BatchNorm1d({stage.width})", "group": f"nn.LayerNorm({stage.width})", "none": ""}[
            plan.norm
        ]
        layers += [norm] if norm else []
        layers.append(f"nn.{plan.activation}()")
        before = str(stage.width)
    made = [
        "    self.features = nn.Sequential(",
        *(f"        {layer}," for layer in layers),
        "    )",
        *_head(plan, before),
    ]
    return [], made, ["def forward(self, x):", "    return self.head(self.features(x))"]


def _attention(plan: Plan) -> tuple[list[str], list[str], list[str]]:
    width, hidden = plan.stages[0].width, plan.ratio * plan.stages[0].width
    block = [
        "class Block(nn.Module):",
        "    def __init__(self, cin):",
        "        super().__init__()",
        "        self.first = nn.LayerNorm(cin)",
        "        self.triple = nn.Linear(cin, 3 * cin)",
        "        self.joined = nn.Linear(cin, cin)",
        "        self.second = nn.LayerNorm(cin)",
        f"        self.expand = nn.Sequential(nn.Linear(cin, {hidden}), nn.{plan.activation}(), nn.Linear({hidden}, cin))",
        "",
        "    def forward(self, x):",
        f"        y = self.triple(self.first(x)).unflatten(-1, (3, {plan.heads}, -1)).permute(2, 0, 3, 1, 4)",
        "        y = torch.softmax(y[0] @ y[1].transpose(-2, -1) * y.shape[-1] ** -0.5, dim=-1) @ y[2]",
        "        x = x + self.joined(y.transpose(1, 2).flatten(2))",
        "        return x + self.expand(self.second(x))",
        "",
    ]
    made = [f"    self.patches = nn.Conv2d(inputs_shape[1], {width}, {plan.patch}, stride={plan.patch})"]
    if plan.positions:
        tokens = f"(inputs_shape[2] // {plan.patch}) * (inputs_shape[3] // {plan.patch})"
        made.append(f"    self.place = nn.Parameter(torch.zeros(1, {tokens}, {width}))")
    made += [
        f"    self.features = nn.Sequential({', '.join(f'Block({stage.width})' for stage in plan.stages)})",
        f"    self.final = nn.LayerNorm({width})",
        *_head(plan, str(width)),
    ]
    place = " + self.place" if plan.positions else ""
    return (
        block,
        made,
        [
            "def forward(self, x):",
            f"    x = self.patches(x).flatten(2).transpose(1, 2){place}",
            "    return self.head(self.final(self.features(x)).mean(1))",
        ],
    )


def _recipe(plan: Plan) -> list[list[str]]:
    recipe = plan.recipe
    momentum = ", momentum=values['momentum']" if recipe.optimizer == "SGD" else ""
    smoothing = f"label_smoothing={recipe.smoothing}" if recipe.smoothing else ""
    clip = [f"        nn.utils.clip_grad_norm_(self.parameters(), {recipe.clip})"] if recipe.clip else []
    return [
        [
            "def train_setup(self, values):",
            "    self.to(self.device)",
            f"    self.criteria = (nn.CrossEntropyLoss({smoothing}).to(self.device),)",
            f"    self.optimizer = torch.optim.{recipe.optimizer}(self.parameters(), lr=values['lr']{momentum})",
        ],
        [
            "def learn(self, train_data):",
            "    self.train()",
            "    for image_batch, targets in train_data:",
            "        logits = self(image_batch.to(self.device))",
            "        loss = self.criteria[0](logits, targets.to(self.device))",
            "        self.optimizer.zero_grad()",
            "        loss.backward()",
            *clip,
            "        self.optimizer.step()",
        ],
    ]


def _styled(lines: list[str], style: Style) -> str:
    """The template in a style."""
    random, names, text, owner = Random(style.seed), _PLAIN | dict(style.names), list[str](), "Block"
    for line in lines:
        owner = "Net" if line.startswith("class Net") else owner
        depth = (len(line) - len(line.lstrip(" "))) // 4
        if line and random.random() < style.remarks:
            text.append(random.choice(("", style.indent * depth + random.choice(_REMARKS))))
        written = re.sub(r"\b[A-Za-z_]+\b", lambda found: names.get(found[0], found[0]), _form(line, owner, style))
        text.append(style.indent * depth + written.lstrip(" "))
    whole = "\n".join(text) + "\n"
    if style.double_quotes:
        whole = whole.replace("'", '"')
    if style.imports:
        whole = whole.replace("import torch.nn as nn", "from torch import nn" if style.imports == 1 else "")
    return whole if style.imports < 2 else re.sub(r"(?<![\w.])nn\.", "torch.nn.", whole)


def _form(line: str, owner: str, style: Style) -> str:
    """One line of the template with keywords, annotations and the long form of super."""
    if style.keywords:
        named = r"nn.Conv2d(in_channels=\1, out_channels=\2, kernel_size=\3"
        line = re.sub(r"nn\.Conv2d\((\w[^,]*), (\w+), (\w+)", named, line)
        line = re.sub(r"\bBlock\(([^,()]+), (\d+), (\d+), (\d+)", r"Block(\1, steps=\4, ks=\3, cout=\2", line)
        line = re.sub(r"\bBlock\(([^,()]+), (\d+), (\d+)", r"Block(\1, cout=\2, ks=\3", line)
    if style.annotated:
        line = line.replace("def forward(self, x):", "def forward(self, x: torch.Tensor) -> torch.Tensor:")
        line = line.replace("values, place_of):", "values: dict, place_of: torch.device) -> None:")
    return line.replace("super()", f"super({owner}, self)") if style.long_super else line


_PLAIN = {"inputs_shape": "in_shape", "outputs_shape": "out_shape", "values": "prm", "place_of": "device"}
