#!/usr/bin/env python3
"""What a run's last passes spent on the device, from the files of kernels.c.

  kernels.py tokens FILE...   microseconds per generated token, kernel by kernel, and the pauses in which nothing ran
  kernels.py link FILE...     a streamed prompt's copies to the device: how fast beside which kernel, and when the link was idle
  kernels.py bursts FILE...   what ran between pauses of the whole device: kernels, copies and gaps of each burst, such as an encode

A token ends with the rarest kernel of the tail; a prompt's pass is what lies between pauses of the link longer than --pass-gap."""
import argparse
import bisect
import collections
import mmap
import struct

RECORD = struct.Struct("<QQQIIII")
TRAILER = struct.Struct("<QQQ")
Run = collections.namedtuple("Run", "start end bytes name stream graph blocks")


def load(path, last):
    """The last records of a file in order of their starts."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    records, names_bytes, lost = TRAILER.unpack(data[-TRAILER.size:])
    end = records * RECORD.size
    names = [n.decode()[:70] for n in data[end:end + names_bytes].split(b"\0")[:-1]]
    tail = data[max(0, end - last * RECORD.size):end]
    runs = sorted(Run(*r)._replace(name=names[r[3]]) for r in RECORD.iter_unpack(tail))
    print(f"{path}: {records} records, {lost} lost")
    return runs


def by_length(pauses, per):
    """Pauses of some ns, summed by powers of two, in us."""
    sums = collections.Counter()
    for ns in pauses:
        sums[ns.bit_length()] += ns
    return ", ".join(f"<{(1 << bits) / 1e3:.1f} us: {ns / per / 1e3:.1f}" for bits, ns in sorted(sums.items()))


def tokens(given):
    columns, counts, follows = [], [], []
    for path in given.files:
        runs = load(path, given.tail)
        seen = collections.Counter((r.name, r.blocks) for r in runs)
        anchor = min((k for k, n in seen.items() if n >= 10), key=seen.get)
        ends = [i for i, r in enumerate(runs) if (r.name, r.blocks) == anchor]
        n = len(ends) - 1
        runs = runs[ends[0]:ends[-1]]
        took, count, pauses, busy_until = collections.Counter(), collections.Counter(), [], runs[0].start
        for r in runs:
            took[r.name, r.blocks] += r.end - r.start
            count[r.name, r.blocks] += 1
            if r.start > busy_until:
                pauses.append(r.start - busy_until)
            busy_until = max(busy_until, r.end)
        span = runs[-1].start - runs[0].start
        print(f"   {n} tokens ending with {anchor[0]}, {anchor[1]} blocks; {len(runs) / n:.0f} runs, {span / n / 1e3:.1f} us each, "
              f"of which nothing runs {sum(pauses) / n / 1e3:.1f}; streams {sorted({r.stream for r in runs})}")
        print("   pauses, us per token: " + by_length(pauses, n))
        columns.append({k: v / n / 1e3 for k, v in took.items()})
        counts.append({k: v / n for k, v in count.items()})
        steps = collections.Counter()
        for before, r in zip(runs, runs[1:]):
            if r.start - before.end < 10_000:
                steps[before.name, before.blocks, r.name, r.blocks] += r.start - before.end
        follows.append({k: v / n / 1e3 for k, v in steps.items()})
    most = sorted({k for c in columns for k in c}, key=lambda k: -max(c.get(k, 0) for c in columns))
    print("us per token (runs), kernel, blocks")
    for key in most[:given.top]:
        cells = "".join(f"{c.get(key, 0):10.1f} ({n.get(key, 0):5.1f})" for c, n in zip(columns, counts))
        print(f"{cells}  {key[0]}, {key[1]}")
    print("from the end of one kernel to the start of the next, us per token (less than 0: they overlap)")
    most = sorted({k for f in follows for k in f}, key=lambda k: -max(abs(f.get(k, 0) - follows[0].get(k, 0)) for f in follows))
    for key in most[:given.top]:
        cells = "".join(f"{f.get(key, 0):10.1f}" for f in follows)
        print(f"{cells}  {key[0][:40]}, {key[1]} -> {key[2][:40]}, {key[3]}")


def link(given):
    for path in given.files:
        runs = load(path, given.tail)
        copies = [r for r in runs if r.name == "copy to device" and r.bytes >= 1 << 16]
        kernels = [r for r in runs if not r.name.startswith("copy") and r.name != "fill"]
        starts = [k.start for k in kernels]
        passes, current = [], []
        for c in copies:
            if current and c.start - max(x.end for x in current[-4:]) > given.pass_gap * 1000:
                passes.append(current)
                current = []
            current.append(c)
        passes.append(current)
        passes = [p for p in passes if sum(c.bytes for c in p) > 1 << 28][-given.passes:]
        beside_bytes, beside_ns = collections.Counter(), collections.Counter()
        for number, p in enumerate(passes):
            first, last = p[0].start, max(c.end for c in p)
            pauses, busy_until, where = [], first, []
            for c in p:
                if c.start > busy_until:
                    pauses.append(c.start - busy_until)
                    where.append((c.start - busy_until, (busy_until - first) / 1e3))
                busy_until = max(busy_until, c.end)
                i = max(0, bisect.bisect_right(starts, c.start) - 1)
                beside = collections.Counter()
                while i < len(kernels) and kernels[i].start < c.end:
                    shared = min(kernels[i].end, c.end) - max(kernels[i].start, c.start)
                    if shared > 0:
                        beside[kernels[i].name, kernels[i].blocks] += shared
                    i += 1
                name, ns = beside.most_common(1)[0] if beside else (("nothing", 0), 0)
                if 2 * ns < c.end - c.start:
                    name = ("mixed", 0) if beside and 2 * sum(beside.values()) > c.end - c.start else ("mostly nothing", 0)
                beside_bytes[name] += c.bytes
                beside_ns[name] += c.end - c.start
            bytes_, span = sum(c.bytes for c in p), last - first
            rates = sorted(c.bytes / (c.end - c.start) for c in p if c.bytes >= 1 << 20)
            quant = [rates[int(q * (len(rates) - 1))] for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
            inside = [k for k in kernels if first <= k.start < last]
            print(f"   pass {number}: {bytes_ / 1e9:.3f} GB in {len(p)} copies, {span / 1e6:.2f} ms, idle {sum(pauses) / 1e6:.2f} ms; "
                  f"GB/s {bytes_ / span:.1f}, while busy {bytes_ / (span - sum(pauses)):.1f}, of copies (5 25 50 75 95 %) "
                  + " ".join(f"{r:.1f}" for r in quant)
                  + f"; kernels {sum(k.end - k.start for k in inside) / 1e6:.2f} ms, "
                  f"after the last copy {(max([k.end for k in kernels if last <= k.start < last + 10_000_000], default=last) - last) / 1e6:.2f} ms")
            print("      idle, us by length: " + by_length(pauses, 1) + "; longest at ms "
                  + ", ".join(f"{at / 1e3:.2f} ({ns / 1e3:.0f} us)" for ns, at in sorted(where, reverse=True)[:6]))
        print("   GB/s (GB) beside kernel, blocks")
        for key, n in beside_bytes.most_common(given.top):
            print(f"   {n / beside_ns[key]:6.1f} ({n / 1e9:7.3f})  {key[0]}, {key[1]}")


def bursts(given):
    for path in given.files:
        runs = load(path, given.tail)
        groups, busy_until = [], 0
        for r in runs:
            if not groups or r.start - busy_until > given.pause * 1000:
                groups.append([])
            groups[-1].append(r)
            busy_until = max(busy_until, r.end)
        begin = runs[0].start
        for group in groups:
            first, last = group[0].start, max(r.end for r in group)
            if last - first < given.shortest * 1000:
                continue
            copies = [r for r in group if r.name == "copy to device"]
            kernels = [r for r in group if not r.name.startswith("copy") and r.name != "fill"]
            busy, until, pauses = 0, first, []
            for r in kernels:
                if r.start > until:
                    pauses.append(r.start - until)
                busy += max(0, r.end - max(until, r.start))
                until = max(until, r.end)
            print(f"   at {(first - begin) / 1e6:.1f} ms: {(last - first) / 1e6:.1f} ms, {len(kernels)} kernels busy {busy / 1e6:.1f} ms; "
                  f"{len(copies)} copies, {sum(c.bytes for c in copies) / 1e6:.1f} MB in {sum(c.end - c.start for c in copies) / 1e6:.1f} ms; "
                  f"first copy at {min((c.start - first for c in copies if c.bytes > 1 << 20), default=0) / 1e6:.1f}, "
                  f"first kernel at {min((k.start - first for k in kernels), default=0) / 1e6:.1f}")
            print("      no kernel, us by length: " + by_length(pauses, 1))
            took, count = collections.Counter(), collections.Counter()
            for r in kernels:
                took[r.name] += r.end - r.start
                count[r.name] += 1
            for name, ns in took.most_common(given.top):
                print(f"      {ns / 1e6:8.2f} ms {count[name]:6d}  {name}")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["tokens", "link", "bursts"])
    ask.add_argument("files", nargs="+")
    ask.add_argument("--tail", type=int, default=110_000, help="records read from the end of each file")
    ask.add_argument("--top", type=int, default=20)
    ask.add_argument("--passes", type=int, default=4)
    ask.add_argument("--pass-gap", type=float, default=1000, help="us without a copy that end a pass")
    ask.add_argument("--pause", type=float, default=3000, help="us without anything that end a burst")
    ask.add_argument("--shortest", type=float, default=10_000, help="us of the shortest burst that is shown")
    given = ask.parse_args()
    {"tokens": tokens, "link": link, "bursts": bursts}[given.what](given)


if __name__ == "__main__":
    main()
