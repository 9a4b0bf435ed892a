"""The tasks that befit generates itself, by name."""

from befit.lm.tasks.arithmetic import ARITHMETIC
from befit.lm.tasks.item import Task
from befit.lm.tasks.needle import NEEDLE
from befit.lm.tasks.tool_call import TOOL_CALL

BUILT_IN: dict[str, Task] = {task.name: task for task in (NEEDLE, TOOL_CALL, ARITHMETIC)}
