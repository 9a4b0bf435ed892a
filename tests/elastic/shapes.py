"""Parents as shapes alone: a hybrid with two SSM groups, a dense one, and a hybrid without FFN."""

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba, MambaShape, NoOp


def hybrid(pattern: str = "M-M*-M-M-M*-", *, hidden: int = 160, ffn: int = 480, groups: int = 2) -> DecoderShape:
    """`M` is a Mamba-2 layer, `*` attention, `-` an FFN."""
    kinds = {
        "M": Block(attention=Mamba(heads=6 * groups), ffn=NoOp()),
        "*": Block(attention=Attention(kv_heads=4), ffn=NoOp()),
        "-": Block(attention=NoOp(), ffn=Ffn(width=ffn)),
    }
    return DecoderShape(
        family="nemotron_h",
        vocab=2048,
        hidden=hidden,
        heads=8,
        head_dim=16,
        tied=False,
        gated=False,
        mamba=MambaShape(head_dim=16, groups=groups, state=16),
        arch=DecoderArch(blocks=tuple(kinds[kind] for kind in pattern)),
    )


def dense(layers: int = 6) -> DecoderShape:
    """A Qwen2-like network whose odd layers have a window, so that equal widths do not mean equal layers."""
    return DecoderShape(
        family="qwen2",
        vocab=1000,
        hidden=128,
        heads=8,
        head_dim=16,
        tied=True,
        qkv_bias=True,
        arch=DecoderArch(
            blocks=tuple(
                Block(attention=Attention(kv_heads=4, window=32 if i % 2 else None), ffn=Ffn(width=352))
                for i in range(layers)
            )
        ),
    )


HYBRID, DENSE, WITHOUT_FFN = hybrid(), dense(), hybrid("MM*MM*")
