"""A plain distillation loop, and timm's task in the same loop: the baselines of speed.py.

The script uses nothing from this project. It is what one would write in an afternoon: torchvision's
ImageFolder and transforms, a DataLoader with two workers, the teacher in every step, float32, and
the default implementation of Adam.

    python plain.py train --data DIR --model NAME --save FILE [--teacher NAME --teacher-file FILE]
    python plain.py serve --data DIR --model NAME --teacher NAME

`serve` reads lines such as "plain 3" or "timm 3" from standard input: a loop and a number of steps.
It answers each line with the seconds per step.
"""

import argparse
import sys
import time
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

try:
    from timm.task import LogitDistillationTask
except ImportError:  # the oldest timm that this project supports does not have it
    LogitDistillationTask = None

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEMPERATURE, ALPHA = 4.0, 0.5


def loader(root, split, size, batch_size, device):
    bilinear = transforms.InterpolationMode.BILINEAR
    changed = [transforms.RandomHorizontalFlip(),
               transforms.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=bilinear)]
    steps = [transforms.Resize((size, size), bilinear), *(changed if split == "train" else []),
             transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = ImageFolder(root / split, transforms.Compose(steps))
    return DataLoader(images, batch_size, shuffle=split == "train", num_workers=2, pin_memory=device.type == "cuda")


def step(student, teacher, optimizer, images, labels):
    logits = student(images)
    loss = F.cross_entropy(logits, labels)
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(images)
        soft = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(logits / TEMPERATURE, 1), F.softmax(taught / TEMPERATURE, 1))
        loss = (1 - ALPHA) * loss + ALPHA * TEMPERATURE**2 * soft
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(network, batches, device):
    network.eval()
    right = [(network(images.to(device)).argmax(1).cpu() == labels).float() for images, labels in batches]
    return torch.cat(right).mean().item()


def train(options, device):
    data = {split: loader(options.data, split, options.size, options.batch_size, device) for split in ("train", "valid", "test")}
    classes = len(data["train"].dataset.classes)
    student, teacher = timm.create_model(options.model, num_classes=classes).to(device), None
    if options.teacher:
        teacher = timm.create_model(options.teacher, num_classes=classes).to(device).eval()
        teacher.load_state_dict(torch.load(options.teacher_file, weights_only=True))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    for epoch in range(options.epochs):
        student.train()
        for images, labels in data["train"]:
            step(student, teacher, optimizer, images.to(device), labels.to(device))
        print(f"epoch {epoch + 1}: valid {accuracy(student, data['valid'], device):.4f}")
    print(f"test {accuracy(student, data['test'], device):.4f}")
    torch.save(student.state_dict(), options.save)


def serve(options, device):
    data = loader(options.data, "train", options.size, options.batch_size, device)
    classes = len(data.dataset.classes)
    student, teacher = (timm.create_model(name, num_classes=classes).to(device) for name in (options.model, options.teacher))
    other = timm.create_model(options.model, num_classes=classes).to(device)
    task = LogitDistillationTask and LogitDistillationTask(
        other, teacher, distill_loss_weight=ALPHA, task_loss_weight=1 - ALPHA, temperature=TEMPERATURE, device=device,
        verbose=False)
    teacher.eval()
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4) for network in (student, other)]

    def plain(images, labels):
        step(student, teacher, optimizers[0], images, labels)

    def by_task(images, labels):
        loss = task(images, labels)["loss"]
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        return loss.item()

    for network in (student, other):
        network.train()
    print("ready" if task else "ready without timm.task", flush=True)
    for line in sys.stdin:
        name, count = line.split()
        one, marks = {"plain": plain, "timm": by_task}[name], []
        for images, labels in data:
            # This ends in .item(), so it waits for the device.
            one(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            marks.append(time.perf_counter())
            if len(marks) > int(count):  # the first step, a wait for the workers, is not counted
                break
        print((marks[-1] - marks[0]) / (len(marks) - 1), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=("train", "serve"))
    parser.add_argument("--data", type=Path, required=True)
    for name in ("model", "teacher", "teacher-file", "save"):
        parser.add_argument(f"--{name}")
    for name, default in (("size", 224), ("batch-size", 16), ("epochs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    {"train": train, "serve": serve}[options.do](options, torch.device(options.device))


if __name__ == "__main__":
    main()
