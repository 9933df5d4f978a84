"""Chains of operations in pieces: the same values in the same memory format."""

import pytest
import torch

from segexp.activations import blocks
from segexp.activations.blocks import in_blocks


def chain(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (x.atan() * y).log1p().copysign(x), x.exp()


@pytest.mark.parametrize("number", [0, 5, 64, 1000])
def test_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(number, generator=generator) for _ in range(2))
    with torch.no_grad():
        for found, wanted in zip(in_blocks(chain, x, y), chain(x, y), strict=True):
            assert torch.equal(found, wanted)


@torch.no_grad()
def test_memory_format_is_kept_and_the_tensors_may_differ_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    plain = torch.rand(3, 4, 7, 6, generator=torch.Generator().manual_seed(1))
    last = plain.to(memory_format=torch.channels_last)
    for x in (plain, last, plain.transpose(0, 3), plain[..., ::2], plain[:, :1]):
        for y in (plain, plain + 1):
            other = y.transpose(0, 3) if x.shape == plain.transpose(0, 3).shape else y[:, : x.shape[1], :, : x.shape[3]]
            for found, wanted in zip(in_blocks(chain, x, other), chain(x, other), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in in_blocks(chain, last, plain))
    assert all(part.is_contiguous() for part in in_blocks(chain, plain, last))
