"""A training loop to copy: plain PyTorch around a model of ours, and a folder to share at the end.

    python examples/train_loop.py                          # half a minute, into runs/example
    python examples/train_loop.py --words names.txt --tensorboard
    torchrun --nproc-per-node=2 examples/train_loop.py     # DistributedDataParallel

Nothing in it is of this package but the model and the data: optimizer, schedule, loader, clipping
and autocast are torch's, and each can be another's.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from convlm_kernels.lm import Alphabet, DilatedCNN, load_words, make_data, sample


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--words", help="a file with one word a line")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32, help="in each process")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--bfloat16", action="store_true", help="autocast to it")
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--out", default="runs/example")
    return parser.parse_args()


def main() -> None:
    args = parse()
    distributed = "RANK" in os.environ  # set by torchrun
    if distributed:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    first = not distributed or dist.get_rank() == 0
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    writer = None
    if args.tensorboard and first:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(args.out)

    data = make_data(load_words(args.words))
    torch.manual_seed(0)
    model = DilatedCNN(len(data.alphabet), hidden=32).to(device)
    wrapped = DistributedDataParallel(model) if distributed else model

    rows = TensorDataset(*data.train)
    sampler = DistributedSampler(rows) if distributed else None
    loader = DataLoader(rows, args.batch_size, shuffle=sampler is None, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * len(loader)
    )
    for epoch in range(args.epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
                loss = cross_entropy(wrapped(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        if first:
            train, val = total.item() / len(loader), val_loss(model, *data.val)
            print(f"epoch {epoch + 1:>3}  train {train:.4f}  val {val:.4f}")
            if writer is not None:
                writer.add_scalar("loss/train", train, epoch + 1)
                writer.add_scalar("loss/val", val, epoch + 1)

    if first:
        model.save_pretrained(args.out, data.alphabet)
        print(f"wrote {args.out}; from it:", *invent(args.out, 5))
    if distributed:
        dist.destroy_process_group()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), y)


@torch.no_grad()
def val_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    device = next(model.parameters()).device
    return cross_entropy(model(x.to(device)), y.to(device)).item()


def invent(folder: str, count: int) -> list[str]:
    """Words of the model that was saved, as another program would load it."""
    model, alphabet = DilatedCNN.from_pretrained(folder), Alphabet.from_pretrained(folder)
    return sample(model, alphabet, count, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
