"""Train a torch module, trace it, and run it in torch with 8-bit integer kernels."""

from importlib.resources import files

import numpy as np
import torch

import graphpress as gp

torch.manual_seed(0)
with np.load(files("graphpress.tools.demo") / "digits.npz") as data:
    images, labels = torch.from_numpy(data["image"]).flatten(1), torch.from_numpy(data["labels"]).long()
net = torch.nn.Sequential(torch.nn.Linear(images.shape[1], 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(images[:400]), labels[:400]).backward()
    optimizer.step()
net.eval()

batch = torch.export.Dim("batch", min=2)
graph = gp.trace(net, (images[:8],), dynamic_shapes=({0: batch},))
small, report = gp.compile(graph, "w8a8-dynamic", target="torch-cpu")
fast = gp.lower(small, "torch-cpu")  # a torch.fx.GraphModule; it is called as the module was
with torch.no_grad():
    for name, module in (("float", net), ("int8", fast)):
        print(name, f"{(module(images[400:]).argmax(1) == labels[400:]).float().mean():.1%} of 200 images")
for site in gp.audit(small, "torch-cpu").sites:
    print(site.node, site.verdict, site.kernel, site.reason)
