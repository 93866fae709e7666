"""Trains small models in PyTorch and writes down what muster-worker must come to: python reference.py FOLDER.

Each case is a folder with model.toml (or script.pt), start.safetensors, batches.safetensors, end.safetensors and
losses.json, the loss before each step of SGD with momentum.
"""

import json
import pathlib
import struct
import sys

import torch
from torch import nn
from torch.nn import functional as F

LR, MOMENTUM = 0.05, 0.9


def save(path, tensors):
    """Writes safetensors: the length of a JSON header, the header, the numbers."""
    header, parts, end = {}, [], 0
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous().numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(16 * 3 * 3, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        way = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + way)


class ResNet18(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, outputs in enumerate([64, 128, 256, 512]):
            first = BasicBlock(inputs, outputs, 1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, BasicBlock(outputs, outputs, 1)))
            inputs = outputs
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        samples, length, width = x.shape
        parts = self.c_attn(x).split(width, dim=2)
        q, k, v = (part.view(samples, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(samples, length, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Gpt(nn.Module):
    def __init__(self, vocabulary, context, layers, heads, width):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocabulary, width),
            "wpe": nn.Embedding(context, width),
            "h": nn.ModuleList(Block(width, heads) for _ in range(layers)),
            "ln_f": nn.LayerNorm(width),
        })
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.apply(self.start)
        self.lm_head.weight = self.transformer["wte"].weight

    @staticmethod
    def start(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens):
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


class Script(nn.Module):
    """A user's own: batch norm, a tied weight, a frozen one, a buffer that is no float."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(20, 20), nn.BatchNorm1d(20)
        self.second = nn.Linear(20, 20)
        self.second.weight = self.first.weight
        self.last = nn.Linear(20, 5)
        self.scale = nn.Parameter(torch.full([20], 0.5), requires_grad=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)) * self.scale)


class Regression(nn.Module):
    """A user's own that computes its loss itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(20, 1)

    def forward(self, x, y):
        return ((self.inner(x).squeeze(1) - y.float()) ** 2).mean()


def once(named):
    """A tied tensor has several names in a state_dict; safetensors keeps the first in the alphabet."""
    kept, seen = {}, set()
    for name, tensor in sorted(named.items()):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def case(folder, name, model, inputs, targets, config=None, loss=None):
    folder = folder / name
    folder.mkdir()
    if config is None:
        torch.jit.script(model).save(folder / "script.pt")
    else:
        (folder / "model.toml").write_text(config)
    save(folder / "start.safetensors", once(model.state_dict()))
    save(folder / "batches.safetensors", {"inputs": inputs, "targets": targets})
    loss = loss or (lambda x, y: F.cross_entropy(model(x).flatten(0, -2), y.flatten()))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM)
    losses = []
    for x, y in zip(inputs, targets):
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    (folder / "losses.json").write_text(json.dumps(losses))
    save(folder / "end.safetensors", once(model.state_dict()))


def pictures(steps, batch, size, classes):
    targets = torch.randint(classes, [steps, batch])
    return torch.randn(steps, batch, 3, size, size) + targets[:, :, None, None, None] * 0.3, targets


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    vectors = torch.randn(30, 16, 1, 8, 8)
    case(folder, "mlp", Mlp(), vectors, vectors.flatten(2)[:, :, :10].argmax(2), 'model = "mlp"\nhidden = [48, 32]\n')
    case(folder, "cnn", Cnn(), *pictures(30, 16, 12, 10), 'model = "cnn"\nchannels = [8, 16]\nhidden = 32\n')
    case(folder, "resnet18", ResNet18(6), *pictures(6, 8, 32, 6), 'model = "resnet18"\nstem = "imagenet"\n')
    tokens = (torch.randint(50, [30, 8, 1]) + torch.arange(17) * 3) % 50
    config = 'model = "gpt"\nlayers = 2\nheads = 4\nwidth = 32\ncontext = 16\nvocabulary = 50\n'
    gpt = Gpt(vocabulary=50, context=16, layers=2, heads=4, width=32)
    case(folder, "gpt", gpt, tokens[:, :, :-1].contiguous(), tokens[:, :, 1:].contiguous(), config)
    rows = torch.randn(30, 16, 20)
    case(folder, "script", Script(), rows, rows[:, :, :5].argmax(2))
    regression = Regression()
    case(folder, "script-loss", regression, rows, rows.sum(2).round().long(), loss=regression)


if __name__ == "__main__":
    main()
