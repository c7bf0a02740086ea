"""Loops and branches of LLVM's, whose bodies are emitted while a kernel is being compiled."""

from .vector import I64, Int


def loop(builder, start, stop, step, values, body):
    """for k in range(start, stop, step): values = body(k, values); gives the last values. k is an Int; start, a Python
    integer or an i64, and stop, an i64, are ir values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    phis = [builder.phi(v.type) for v in values]
    builder.cbranch(builder.icmp_signed("<", k, stop), inside, after)
    builder.position_at_end(inside)
    results = body(Int(builder, k), phis)
    k.add_incoming(I64(start) if isinstance(start, int) else start, before)
    k.add_incoming(builder.add(k, I64(step)), builder.block)
    for phi, first, later in zip(phis, values, results):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


def in_blocks(builder, count, block, values, body):
    """body(k, terms, values) for every `block` of `count` terms, the last one shorter."""

    def run(k, values):
        left = builder.sub(count, k.value)
        return body(k, builder.select(builder.icmp_signed("<", left, I64(block)), left, I64(block)), values)

    return loop(builder, 0, count, block, values, run)


def either(builder, condition, then, otherwise):
    """The values that `then()` gives where the condition (i1) holds, else those of `otherwise()`."""
    blocks = [builder.append_basic_block(name) for name in ("then", "otherwise", "joined")]
    builder.cbranch(condition, *blocks[:2])
    made = []
    for block, emit in zip(blocks, (then, otherwise)):
        builder.position_at_end(block)
        made.append((emit(), builder.block))
        builder.branch(blocks[2])
    builder.position_at_end(blocks[2])
    results = []
    for values in zip(*(values for values, _ in made), strict=True):
        phi = builder.phi(values[0].type)
        for value, (_, end) in zip(values, made, strict=True):
            phi.add_incoming(value, end)
        results.append(phi)
    return results
