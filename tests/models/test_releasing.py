"""Memory that was freed goes back to the system on demand."""

import ctypes
import platform

import psutil
import pytest

from sloth_nb.models.releasing import give_back_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_what_was_freed_in_pieces_goes_back():
    libc, piece, count = ctypes.CDLL(None), 64 << 10, 1024  # smaller than what is ever mapped by itself
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [ctypes.memset(libc.malloc(piece), 1, piece) for _ in range(count)]
    for block in blocks[:-1]:  # the last one keeps the heap's end where it is
        libc.free(block)
    before = psutil.Process().memory_info().rss
    give_back_freed_memory()
    assert before - psutil.Process().memory_info().rss > 0.8 * piece * count
    libc.free(blocks[-1])
