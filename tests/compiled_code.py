"""What compiled code says of itself: its text in each of the compiler's languages, and the assembler's log."""

import re


def said(made, log):
    """The counts of a compilation that tests/compile_only.py tells of."""
    if "amdgcn" in made.asm:
        text = made.asm["amdgcn"]
        # Scalar registers are spilled to lanes of vector registers, not to memory.
        spills = sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)))
        absent = dict.fromkeys(("unordered", "copies", "ahead", "copied", "wide", "described"), 0)
        return {"spilled": 4 * spills, "products": len(re.findall("v_mfma", text)), **absent}
    ptx = made.asm["ptx"]
    return {
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log))),
        "products": len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx)),
        "unordered": unordered(ptx),
        "copied": 16 * 32 * made.metadata.num_warps * len(re.findall(r"cp\.async\.cg\S* \[.*?\], \[.*?\], 0x10,", ptx)),
        **_copies(made.asm["ttgir"]),
        "wide": len(re.findall(r"ld\.global\.v4\.b32", ptx)),
        "described": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
    }


def _copies(ttgir):
    """Asynchronous copies to shared memory, and those before which the last synchronisation is not a wait."""
    count, ahead, waited = 0, 0, False
    for found in re.finditer(r"async(?:_tma)?_copy_global_to_local|atomic_rmw \w+, (\w+)", ttgir):
        if found[1]:
            waited = found[1] == "acquire"
        else:
            count, ahead = count + 1, ahead + (not waited)
    return {"copies": count, "ahead": ahead}


def unordered(ptx):
    """Releases between which and a store to global memory before them no barrier of the program's threads lies."""
    count, stored = 0, False
    for line in ptx.splitlines():
        if "st.global" in line and "release" not in line:
            stored = True
        elif re.search(r"\b(bar|barrier)\.sync", line):
            stored = False
        elif re.search(r"\.(release|acq_rel)\b", line) and stored:
            count += 1
    return count
