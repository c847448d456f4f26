#!/usr/bin/env python3
"""An independent check of the Qwen2.5-VL encoder: `transformers` computes the same image with the weights of the same file.

  independent.py MMPROJ IMAGE EMBEDDINGS...

IMAGE is a BMP whose sides are multiples of 28, so that nothing scales it. EMBEDDINGS are files that MTMD_DEBUG_EMBEDDINGS wrote.
Prints the least and the mean cosine per token for each; the exit status is 1 where one is not above 0.999. Needs PyTorch and
transformers 5; everything is computed in float32."""
import math
import struct
import sys

import numpy as np
import torch
from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as configuration, modeling_qwen2_5_vl as modeling

SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def gguf(path):
    """Metadata and tensors (f32 and f16, as float32) of a file."""
    data, at = np.memmap(path, np.uint8, "r"), 4

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def text():
        nonlocal at
        size = take("Q")
        at += size
        return bytes(data[at - size:at]).decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            kind, count = take("IQ")
            return [value(kind) for _ in range(count)]
        return take(SIZES[kind])

    _, tensors, entries = take("IQQ")
    meta = {}
    for _ in range(entries):
        key = text()
        meta[key] = value(take("I"))
    infos = []
    for _ in range(tensors):
        name, count = text(), take("I")
        shape = [take("Q") for _ in range(count)]
        infos.append((name, shape, *take("IQ")))
    alignment = meta.get("general.alignment", 32)
    start = -(-at // alignment) * alignment
    kinds = {0: np.float32, 1: np.float16}
    return meta, {
        name: torch.from_numpy(np.frombuffer(data, kinds[kind], math.prod(shape), start + offset).astype(np.float32).reshape(shape[::-1]))
        for name, shape, kind, offset in infos
    }


def picture(path):
    """Pixels of a BMP with 24 bits, rows from the top, red first: [height, width, 3], 0 to 255."""
    data = open(path, "rb").read()
    start, = struct.unpack_from("<I", data, 10)
    width, height = struct.unpack_from("<ii", data, 18)
    row = (width * 3 + 3) // 4 * 4
    rows = np.frombuffer(data, np.uint8, row * height, start).reshape(height, row)[::-1, :width * 3]
    return rows.reshape(height, width, 3)[:, :, ::-1].astype(np.float32)


def reference(mmproj, image):
    meta, tensors = gguf(mmproj)
    vision = {key.removeprefix("clip.vision."): v for key, v in meta.items()}
    patch, width, layers = vision["patch_size"], vision["embedding_length"], vision["block_count"]
    every = vision["n_wa_pattern"]
    config = configuration.Qwen2_5_VLVisionConfig(
        depth=layers, hidden_size=width, hidden_act="silu", intermediate_size=vision["feed_forward_length"],
        num_heads=vision["attention.head_count"], in_channels=3, patch_size=patch, spatial_merge_size=2, temporal_patch_size=2,
        window_size=112, out_hidden_size=vision["projection_dim"], fullatt_block_indexes=[i for i in range(layers) if (i + 1) % every == 0])
    config._attn_implementation = "eager"
    tower = modeling.Qwen2_5_VisionTransformerPretrainedModel(config).float().eval()
    named = {"patch_embed.proj.weight": torch.stack([tensors["v.patch_embd.weight"], tensors["v.patch_embd.weight.1"]], 2),
             "merger.ln_q.weight": tensors["v.post_ln.weight"]}
    for ours, theirs in (("mm.0", "merger.mlp.0"), ("mm.2", "merger.mlp.2")):
        for part in ("weight", "bias"):
            named[f"{theirs}.{part}"] = tensors[f"{ours}.{part}"]
    for i in range(layers):
        of = lambda name: tensors[f"v.blk.{i}.{name}"]
        block = f"blocks.{i}."
        named[block + "norm1.weight"], named[block + "norm2.weight"] = of("ln1.weight"), of("ln2.weight")
        for part in ("weight", "bias"):
            named[f"{block}attn.qkv.{part}"] = torch.cat([of(f"attn_{x}.{part}") for x in "qkv"])
            named[f"{block}attn.proj.{part}"] = of(f"attn_out.{part}")
            for x in ("gate", "up", "down"):
                named[f"{block}mlp.{x}_proj.{part}"] = of(f"ffn_{x}.{part}")
    left = tower.load_state_dict(named, strict=False)
    left_out = [key for key in left.missing_keys if "rotary" not in key]
    if left_out or left.unexpected_keys:
        sys.exit(f"the file and transformers differ: {left_out[:4]} are missing, {left.unexpected_keys[:4]} are unknown")
    pixels = (picture(image) / 255 - vision["image_mean"]) / vision["image_std"]
    high, wide = pixels.shape[0] // patch, pixels.shape[1] // patch
    # patches two by two, as the merger takes them; each twice, for the two frames that a still image stands for
    cut = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).reshape(3, high // 2, 2, patch, wide // 2, 2, patch)
    cut = cut.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        out = tower.to(device)(cut.reshape(high * wide, -1).to(device), torch.tensor([[1, high, wide]], device=device))
    for name in ("pooler_output", "last_hidden_state"):
        found = getattr(out, name, None)
        if found is not None and found.shape[-1] == vision["projection_dim"]:
            return found.reshape(-1, vision["projection_dim"]).cpu()
    return out.reshape(-1, vision["projection_dim"]).cpu()


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    expected = reference(*sys.argv[1:3])
    close = True
    for path in sys.argv[3:]:
        data = open(path, "rb").read()
        tokens, width = struct.unpack_from("<ii", data)
        found = torch.from_numpy(np.frombuffer(data, np.float32, tokens * width, 8).reshape(tokens, width).copy())
        if found.shape != expected.shape:
            sys.exit(f"{path}: {tuple(found.shape)}, where transformers has {tuple(expected.shape)}")
        cosine = torch.nn.functional.cosine_similarity(found.double(), expected.double(), dim=1)
        apart = ((found - expected).norm() / expected.norm()).item()
        close &= cosine.min().item() > 0.999
        print(f"{path.rsplit('/', 1)[-1]}: {tokens} tokens, cosine {cosine.min():.6f} at least, {cosine.mean():.6f} on average; apart {apart:.1e}")
    sys.exit(not close)


if __name__ == "__main__":
    main()
