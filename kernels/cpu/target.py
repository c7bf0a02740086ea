"""What Numba generates code for, and the tile shapes that follow from it."""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Target:
    """An instruction set: `bits` a vector register, `registers` of them, and the code generator's own description."""

    name: str
    bits: int
    registers: int
    triple: str
    cpu: str
    features: str

    @property
    def dots_bfloat16(self):
        """Whether an instruction multiplies pairs of bfloat16 and adds them up in float32."""
        return self.bits == 512 and "+avx512bf16" in self.features.split(",")

    @property
    def dots_bytes(self):
        """Whether an instruction multiplies groups of four bytes, of one operand without a sign, and adds them up."""
        feature = {512: "+avx512vnni", 256: "+avxvnni"}.get(self.bits)
        return feature in self.features.split(",")

    def lanes(self, size):
        """Elements of `size` bytes in a vector."""
        return self.bits // (8 * size)

    def rows(self, vectors):
        """Rows of a register tile `vectors` wide: accumulators, one row of the other operand and one broadcast fit."""
        most = (self.registers - vectors - 1) // vectors
        return max(1, min(8, most - most % 2))


def describe(triple, cpu, features):
    """The Target of a code generator's (triple, cpu, comma-separated features)."""
    on = set(features.split(","))
    if triple.startswith(("aarch64", "arm64")):
        return Target("NEON", 128, 32, triple, cpu, features)
    if "+avx512f" in on:
        return Target("AVX-512", 512, 32, triple, cpu, features)
    if "+avx2" in on and "+fma" in on:
        return Target("AVX2", 256, 16, triple, cpu, features)
    return Target("128-bit", 128, 16, triple, cpu, features)


@lru_cache(maxsize=1)
def current():
    """The Target of this process. Numba's own NUMBA_CPU_NAME and NUMBA_CPU_FEATURES are followed."""
    from numba.core.registry import cpu_target

    return describe(*cpu_target.target_context.codegen().magic_tuple())
