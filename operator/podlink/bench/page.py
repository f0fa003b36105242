"""The page about speed in the documentation: the table of one run, and how to read it."""

from typing import Final

from podlink.bench.figures import Line
from podlink.bench.report import Report, summary

_PAGE: Final = """\
# Benchmarks

Written by `make bench`, so that what stands here is what was measured. `podlink bench --redis-url redis://…` measures
your own Redis the same way, in keys of its own that it removes again. All rounds are in [bench.json](bench.json).

![Links and reads a second, beside the alternatives and the limit](bench.svg)

{summary}

{table}

## How to read it

- All contenders work on the same links with the same script (`statefulSetLink` with its four keys), each in a process
  of its own, in turn: a round of each, then the next round. The first number is the median of the rounds.
- Each of these calls links a user to the pod that the user is linked to already, which writes string and hash anew. A
  link that moves to another pod changes the loads of both besides; the links of the largest batch below move.
- A line with `…` is a ratio. It is formed in each round, of figures that were measured shortly one after the other; so
  its median is not exactly the ratio of the two medians above.
- **P** is the number of requests in flight on a connection, **c** the number of connections.
- **redis-benchmark** is the tool that comes with Redis: a client in C that does nothing with a reply.
- **Plain sockets** send requests that were packed before the clock started, and only compare the replies: the limit of
  what a client in one thread can get out of the server with one request for each link.
- **redis-py** is what one would use without PodLink: as it comes, with keys made in advance. PodLink makes its keys of
  namespace, uid and service in each call.
- **A call that is alone** waits for its reply before the next one is made, and nothing else goes on. The figure of a
  round is the median of its calls.
- **Until it shows** is the time from before another process sends its write until a cached read in this one returns
  it, when it reads in every turn of its event loop.
- **How long the server serves nobody else** is by its own account (`INFO commandstats`): the mean of script calls with
  as many links in them as PodLink ever puts there. A computed link takes longer where the service has more pods, of
  which there are few here: see [limitations](limitations.md).
- **Memory** is by how much `used_memory` grows, divided by the {memory_links:,} links that were written. The lines
  above PodLink's are the same links as a string and a field of a hash, with no loads and nothing else of PodLink's.
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
