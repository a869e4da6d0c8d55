"""From the codes of quantised weights to numbers, in registers.

A tile of codes is bytes. Bytes of the forms of eight bits are a number each; those of four bits hold two columns that lie
apart, the low and the high ones, so that either is decoded by itself and neither has to change places.

Where kernels are compiled (ASM), four bytes, which a register holds, are decoded together: a byte is moved into the half of a
register where its bits mean a number near to what it stands for, and the difference is taken away.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton.language as tl

from sapwood.kernels.triton.jit import jit


@jit
def decode(codes, table, dtype: tl.constexpr, FORM: tl.constexpr, HIGH: tl.constexpr, ASM: tl.constexpr):
    """The numbers of a tile of uint8 codes in float32, float16 or bfloat16; FORM is one of `Planes`, HIGH the half of it."""
    if FORM == "table":
        return tl.load(table + ((codes >> (4 if HIGH else 0)) & 0xF).to(tl.int32)).to(dtype)
    elif not ASM or dtype == tl.float32:
        return _arithmetic(codes, FORM, HIGH).to(dtype)
    elif dtype == tl.bfloat16:
        return _bfloat16(codes, FORM, HIGH)
    else:
        return _float16(codes, FORM, HIGH)


@jit
def ones(codes, dtype: tl.constexpr, ASM: tl.constexpr):
    """1 for each code, in the layout of what is decoded: other operands can then be those of either."""
    if not ASM or dtype == tl.float32:
        return tl.full(codes.shape, 1.0, dtype)
    elif dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, 0x3F803F80; mov.b32 $1, 0x3F803F80; // $2", "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, 0x3C003C00; mov.b32 $1, 0x3C003C00; // $2", "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4
        )  # fmt: skip


@jit
def _arithmetic(codes, FORM: tl.constexpr, HIGH: tl.constexpr):
    if FORM == "fp8":
        return codes.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    elif FORM == "int8":
        return codes.to(tl.int8, bitcast=True).to(tl.float32)
    else:
        code = ((codes >> (4 if HIGH else 0)) & 0xF).to(tl.int32)
        if FORM == "uint4":
            return code.to(tl.float32) - 8.0
        else:
            tl.static_assert(FORM == "e2m1")
            exponent, mantissa = ((code >> 1) & 3).to(tl.int32), (code & 1).to(tl.float32)
            size = tl.where(exponent == 0, mantissa * 0.5, (2.0 + mantissa) * (1 << exponent).to(tl.float32) * 0.25)
            return tl.where(code >= 8, -size, size)


@jit
def _bfloat16(codes, FORM: tl.constexpr, HIGH: tl.constexpr):
    if FORM == "fp8":
        # The exponent's four bits end up 120 too low.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 a, b, c, d, scale;
            mov.b32 scale, 0x7B807B80;
            prmt.b32 a, $2, 0, 0x1404;
            prmt.b32 b, $2, 0, 0x3424;
            shr.u32 c, a, 4;
            shr.u32 d, b, 4;
            and.b32 c, c, 0x07F007F0;
            and.b32 d, d, 0x07F007F0;
            lop3.b32 a, a, 0x80008000, c, 0xEA;
            lop3.b32 b, b, 0x80008000, d, 0xEA;
            mul.bf16x2 $0, a, scale;
            mul.bf16x2 $1, b, scale;
            }
            """,
            "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4,
        )  # fmt: skip
    elif FORM == "int8":
        # 128 + the seven low bits, less 128, or 256 where the sign is set.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 a, b, c, d, magic;
            mov.b32 magic, 0x43434343;
            prmt.b32 a, $2, magic, 0x4140;
            prmt.b32 b, $2, magic, 0x4342;
            and.b32 c, a, 0xFF80FF80;
            and.b32 d, b, 0xFF80FF80;
            and.b32 a, a, 0xFF7FFF7F;
            and.b32 b, b, 0xFF7FFF7F;
            sub.bf16x2 $0, a, c;
            sub.bf16x2 $1, b, d;
            }
            """,
            "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4,
        )  # fmt: skip
    elif FORM == "uint4":
        # 128 + the code, less 136.
        if HIGH:
            return tl.inline_asm_elementwise(
                """
                {
                .reg .b32 w, a, b, magic, less;
                mov.b32 magic, 0x43434343;
                mov.b32 less, 0x43084308;
                shr.u32 w, $2, 4;
                prmt.b32 a, w, magic, 0x4140;
                prmt.b32 b, w, magic, 0x4342;
                and.b32 a, a, 0xFF0FFF0F;
                and.b32 b, b, 0xFF0FFF0F;
                sub.bf16x2 $0, a, less;
                sub.bf16x2 $1, b, less;
                }
                """,
                "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                """
                {
                .reg .b32 a, b, magic, less;
                mov.b32 magic, 0x43434343;
                mov.b32 less, 0x43084308;
                prmt.b32 a, $2, magic, 0x4140;
                prmt.b32 b, $2, magic, 0x4342;
                and.b32 a, a, 0xFF0FFF0F;
                and.b32 b, b, 0xFF0FFF0F;
                sub.bf16x2 $0, a, less;
                sub.bf16x2 $1, b, less;
                }
                """,
                "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4,
            )  # fmt: skip
    else:
        return _arithmetic(codes, FORM, HIGH).to(tl.bfloat16)


@jit
def _float16(codes, FORM: tl.constexpr, HIGH: tl.constexpr):
    if FORM == "fp8":
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b16 low, high;
            mov.b32 {low, high}, $2;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }
            """,
            "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4,
        )  # fmt: skip
    elif FORM == "int8":
        # 1024 + the code as if it were unsigned from -128 on, less 1152.
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 w, a, b, magic, less;
            mov.b32 magic, 0x64646464;
            mov.b32 less, 0x64806480;
            xor.b32 w, $2, 0x80808080;
            prmt.b32 a, w, magic, 0x4140;
            prmt.b32 b, w, magic, 0x4342;
            sub.f16x2 $0, a, less;
            sub.f16x2 $1, b, less;
            }
            """,
            "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        return _arithmetic(codes, FORM, HIGH).to(tl.float16)
