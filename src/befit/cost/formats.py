"""Number formats of weights and of the cache: the bytes of one number, and of the scales that come with it.

Engines quantise the matrices of the linear layers (attention, FFN and Mamba-2 projections) and leave the rest in 16 bits:
embedding, output projection, norms, biases, the convolution of Mamba-2 and its numbers a head (vLLM's fp8, int8 and nvfp4
checkpoints, as llm-compressor and ModelOpt write them). So does every quantised format here, with these scales:

- fp8: one fp32 scale for each matrix. In the cache the scale is a constant of the layer and is not counted.
- int8: one fp32 scale for each row of a matrix (output channel); in the cache one for each token and KV head of keys and values.
- nvfp4: two numbers in a byte, one fp8 scale for every 16 numbers of a row (4.5 bits a number), and one fp32 scale for each
  matrix; in the cache without the last.

llama.cpp's q8_0 is another int8, of 8.5 bits a number in all matrices, embedding and output projection included; it is not
counted here.
"""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one number in the formats that networks are computed in."""
QUANTISED = ("fp8", "int8", "nvfp4")
"""Formats of matrices and of the cache alone, beside bf16."""
FORMATS = (*BYTES, *QUANTISED)
"""All formats that a workload may name."""
BESIDE = "bf16"
"""Format of what a quantised checkpoint leaves as it was."""

SCALE = 4
"""Bytes of an fp32 scale."""
GROUP = 16
"""Numbers that share an fp8 scale in nvfp4."""


def matrix_bytes(rows: int, columns: int, number_format: str) -> int:
    """Bytes of the matrix of a linear layer, with its scales. Rows are output channels."""
    match number_format:
        case "fp8":
            return rows * columns + SCALE
        case "int8":
            return rows * (columns + SCALE)
        case "nvfp4":
            return rows * _nvfp4(columns) + SCALE
        case _:
            return rows * columns * BYTES[number_format]


def plain_bytes(numbers: int, number_format: str) -> int:
    """Bytes of weights that are never quantised, in a network whose matrices have `number_format`."""
    return numbers * BYTES[beside(number_format)]


def key_bytes(channels: int, number_format: str) -> int:
    """Bytes of the key, or the value, of one token and one KV head."""
    match number_format:
        case "fp8":
            return channels
        case "int8":
            return channels + SCALE
        case "nvfp4":
            return _nvfp4(channels)
        case _:
            return channels * BYTES[number_format]


def beside(number_format: str) -> str:
    """The format of what stands beside matrices, or keys and values, of `number_format`: its own if it is not quantised."""
    return BESIDE if number_format in QUANTISED else number_format


def _nvfp4(numbers: int) -> int:
    return -(-numbers // 2) + -(-numbers // GROUP)
