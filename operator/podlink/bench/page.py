"""The page about speed in the documentation: the table of one run, and how to read it."""

from typing import Final

from podlink.bench.figures import Line
from podlink.bench.report import Report, summary

_PAGE: Final = """\
# Benchmarks

`make bench` writes this page, so it shows what was measured. `podlink bench --redis-url redis://…` measures your own
Redis in the same way. It uses keys of its own and removes them afterwards. [bench.json](bench.json) contains all
rounds.

![Links and reads a second, beside the alternatives and the limit](bench.svg)

{summary}

{table}

## How to read it

- All clients work on the same links with the same script (`statefulSetLink` with its four keys). Each runs in a
  process of its own. They take turns: one round of each, then the next round. The first number is the median of the
  rounds.
- Each of these calls links a user to the pod that the user is already linked to. This writes the string and the hash
  again. A link that moves to another pod also changes two loads. The links of the largest batch below move.
- A line with `…` is a ratio. It is computed in each round, from two figures measured one shortly after the other. So
  its median is not exactly the ratio of the two medians above it.
- **P** is the number of requests in flight on a connection. **c** is the number of connections.
- **redis-benchmark** is the tool that comes with Redis. It is a client in C that does nothing with a reply.
- **Plain sockets** send requests that were packed before the measurement, and only compare the replies. This is the
  limit of a client with one thread that sends one request for each link.
- **redis-py** is what you would use without PodLink. It runs with its defaults, and with keys that were made before
  the measurement. PodLink makes its keys from namespace, uid and service in each call.
- **A call that is alone** waits for its reply before the next call, and nothing else runs. The figure of a round is
  the median of its calls.
- **Until it shows** is the time from just before another process sends its write until a cached read in this process
  returns the new value. This process reads in every iteration of its event loop.
- **How long the server serves nobody else** is measured by the server (`INFO commandstats`). It is the mean time of
  script calls with as many links as PodLink ever puts into one. A computed link takes longer if the service has more
  pods. Here it has few: see [limitations](limitations.md).
- **Memory** is the growth of `used_memory` divided by the {memory_links:,} links that were written. The line above
  each PodLink line is the same links as only a string and a field of a hash, without loads.
"""


def as_page(found: Report) -> str:
    """The page, in Markdown."""
    return _PAGE.format(
        summary="\n".join(summary(found)), table=_table(found.lines), memory_links=found.settings.memory_links
    )


def _table(lines: list[Line]) -> str:
    rows = ["| | median | lowest to highest | target | |", "|---|---:|---:|---:|---|"]
    for line in lines:
        if line.heading:
            rows.append(f"| **{line.title}** | | | | |")
        else:
            note = f"**{line.note}**" if line.note.isupper() else line.note
            rows.append(f"| {line.title} | {line.median} | {line.ends} | {line.target} | {note} |")
    return "\n".join(rows)
