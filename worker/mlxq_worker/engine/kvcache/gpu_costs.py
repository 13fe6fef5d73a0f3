"""What keys and values cost to be read and copied on Apple's GPUs, reckoned from a few stated numbers.

They stand here once, so that whoever has a Mac can put measured ones in their place: none of them was measured. Plain
Python.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_S = 400e9
"""Memory bandwidth of an M3 Max; 100e9 for the smallest chips, 800e9 for the largest."""
LAUNCH_S = 5e-6
"""What a further small kernel takes, its encoding and the wait for the one before it included."""
PARTS_LAUNCHES = 22
"""So many more kernels a layer of 16-bit numbers launches when rows attend to a prefix in one part and to their slots
in another, instead of to both in one fused kernel."""
PARTS_READS = 5
"""A part's keys and values of 16 bits are read, laid out in float32 and read again: so many times their bytes."""

_BUFFERS_IN_FLIGHT, _LAUNCHES_PER_BUFFER, _BYTES_PER_BUFFER = 10, 50, 50 << 20
"""MLX has so many command buffers on their way at most, each of so many kernels or so many bytes at most
(`MAX_ACTIVE_TASKS` in mlx/transforms.cpp, `max_ops_per_buffer_` and `max_mb_per_buffer_` in
mlx/backend/metal/device.cpp, for the Max and Ultra chips; fewer for others)."""
_LAYER_LAUNCHES = 17


def parts_pay(num_rows: int, num_tokens: int, layer_bytes_per_token: float) -> bool:
    """Whether rows that share a prefix of so many tokens had better attend to it together, so that it is read for all
    of them and not by each, than each to a copy of its own with one fused kernel for all.

    With 32 rows and the 4,096 bytes a token of a layer of an 8B Llama from 398 tokens on, and never with 5 rows. That
    the rows' own keys and values are laid out in float32, too, is left out, as is the memory that copies take.
    """
    saved_bytes = (num_rows - PARTS_READS) * num_tokens * layer_bytes_per_token
    return saved_bytes / BYTES_PER_S > PARTS_LAUNCHES * LAUNCH_S


@dataclass(frozen=True, slots=True)
class InFlightCopies:
    """What a step that starts while the one before is being computed has to copy first.

    MLX writes in place only what nobody else holds, and a command buffer that is on its way holds what its kernels
    read: then a scatter into a slab copies the slab. A large model's step is so many command buffers that the last one
    is through with a layer before the next step gets there, and nothing is copied.

    Args:
        weights_bytes: the model's.
        num_layers: the model's.
    """

    weights_bytes: int
    num_layers: int

    @property
    def are_made(self) -> bool:
        """Whether the whole of a step may be on its way at once."""
        return (
            self.weights_bytes < _BUFFERS_IN_FLIGHT * _BYTES_PER_BUFFER
            and self.num_layers * _LAYER_LAUNCHES < _BUFFERS_IN_FLIGHT * _LAUNCHES_PER_BUFFER
        )

    def seconds(self, slab_bytes: int) -> float:
        """How long a step copies slabs of so many bytes: each is read and written."""
        return 2 * slab_bytes / BYTES_PER_S if self.are_made else 0.0
