"""Packing: which rows share one sequence, best fit first, longest first, in O(n log n)."""

from collections.abc import Sequence

from sloth_nb.errors import DatasetError

__all__ = ["pack"]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups row numbers so that each group's lengths fit into ``capacity``.

    Best-fit decreasing: the longest rows first, each into the fullest pack that still has room for it. A
    segment tree over free space finds that pack in O(log capacity). Packs come in the order of their first
    row.

    Raises:
        DatasetError: a row is longer than ``capacity`` (cut rows first).
    """
    if not len(lengths):
        return []
    longest = max(lengths)
    if longest > capacity:
        raise DatasetError(
            f"a row of {longest:,} tokens doesn't fit into packs of {capacity:,}. Cut rows first."
        )
    size = 1 << capacity.bit_length()
    tree = [0] * (
        2 * size
    )  # tree[size + free] counts packs with that much free space; a parent sums its children
    packs_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    packs: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[row]
        free = _smallest_at_least(tree, size, length)
        if free is None:
            number, free = len(packs), capacity
            packs.append([])
        else:
            number = packs_with[free].pop()
            _add(tree, size + free, -1)
        packs[number].append(row)
        left = free - length
        if left:
            packs_with[left].append(number)
            _add(tree, size + left, 1)
    for group in packs:
        group.sort()
    return sorted(packs)


def _add(tree: list[int], node: int, count: int) -> None:
    while node:
        tree[node] += count
        node >>= 1


def _smallest_at_least(tree: list[int], size: int, wanted: int) -> int | None:
    """The smallest free space ≥ ``wanted`` that some pack has."""
    node = size + wanted
    if tree[node]:
        return wanted
    while node > 1:
        if not node & 1 and tree[node + 1]:
            node += 1
            break
        node >>= 1
    else:
        return None
    while node < size:
        node = 2 * node if tree[2 * node] else 2 * node + 1
    return node - size
