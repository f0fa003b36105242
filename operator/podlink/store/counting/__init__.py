"""The recount: brings every pod's load to the number of links that it has.

A link counts for the pod its string names when its uid's hash lists the service and the string lives; one in its
reconnect window has no field, and counts nothing. Our clients book a link and its load in one step (on Redis Cluster
in two, a moment apart), so loads stay right by themselves. They go wrong where clients that know no loads write links,
where somebody dies between the two slots of Redis Cluster or with a reservation in hand, and where moves of one link
cross there.

Counting is the easy part. The walk over all keys takes seconds or minutes, and is no snapshot: a link that is made and
one that is removed meanwhile may both be seen, or neither. Setting a load to such a count would make right loads wrong,
in busy services always. So nothing is ever set to a count. What is wrong is taken as a difference, which stays the same
while our clients make and remove links and adjust the load with them, and which is safe to add whenever it has been
found. How large it is at the least is proved like this.

Temporary links can be compared one by one, because each has its unit of load in the expiry set: see `members`. That
comes first, during one walk.

Permanent links are but a sum. Several walks are made, and loads are read before, during and after each. Of one pod:

- a link that every walk saw there was there all the time in between (A), and one that no walk saw was not (B). So at
  any time in between, the pod had at least as many links as every walk saw, and at most as many as any walk saw.
- the load was read many times in between, and was at least its least and at most its greatest value.
- if the greatest load is below the least number of links, the load lacks at least the difference. If the least load is
  above the greatest number of links, it exceeds by at least the difference. Otherwise it may be right, and is left.

Where nothing happens, all walks see the same and the load stays the same: the difference is exact, and one recount
makes the load right. Where much happens, both brackets widen and the difference shrinks, down to nothing: what is
repaired is what the traffic cannot explain, and the rest waits for a quieter time. Where our clients alone write,
number and load are equal whenever a load is read, so neither can lie beyond the other's bracket, and right loads are
left alone. This is the double collect of the theory of atomic snapshots (Afek et al., 1993), with brackets instead of
equality.

What A and B leave out: a link that is removed and made again at the same pod between two walks is not A's (it lowers
the number for that moment), and one that lives between two looks is not B's. For either to mislead, the load must hide
it at each of dozens of readings: another link has to come or go at the same pod in that instant, every time, and all
WALKS walks must miss, or see, both of each pair. A pod whose one user changes uid in a single pipeline again and again
during the whole recount has a chance of about one in fifty to lose its one unit; the next recount returns it. With
more users, or any other order of events, the chance vanishes.

A walk that finds nothing to explain is the only one, and later walks look only at pods whose load is still in question.
Between two walks is a pause that is longer than a call may take: a client of Redis Cluster that has made a link and not
yet booked it is not taken for one that died. A reservation that is held longer than that, with no link made of it,
counts as lost.

A walk visits every server that has keys. It may miss some that move, or a whole server that fails, meanwhile. What one
walk misses another one sees, and nothing is repaired on the word of one alone.

The repair is one step on the server, which takes the load of that very moment for one more reading. So where a load
stands still, two recounts at a time (of two operators) do no harm: the second finds it changed, and its bracket then
holds the repaired value. Where it does not, both may repair the same, and the next recount takes that back.

The server works on a slice for a millisecond or less, and pauses in between keep it free for others: see
`inquiry`. A recount can be cancelled at any time; each of its writes is whole by itself.
"""

from podlink.store.counting.loads import Recount, Repair, recount

__all__ = ["Recount", "Repair", "recount"]
