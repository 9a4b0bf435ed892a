"""What the worker's process finds in place of a GPU: 64 GiB."""

import torch

torch.cuda.mem_get_info = lambda: (63 * 2**30, 64 * 2**30)
