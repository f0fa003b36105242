"""First harness (to be replaced): python -m podlink.bench.quick [--seconds 1] [--rounds 3] [--kind redis|valkey] [names…]"""
import argparse, json, statistics, subprocess, sys, uuid
import msgspec
from podlink.bench import tool
from podlink.bench.plan import POD, SERVICE, Plan, uids
from podlink.bench.contenders import MEASURES
from podlink.bench.worker import Answer
from podlink.store import operations
from podlink.store.blocking import StatefulExecutor

EXTERNAL = {
    "redis-benchmark": lambda p: tool.link_rate(p, 1),
    "redis-benchmark-p100": lambda p: tool.link_rate(p, 100),
    "redis-benchmark-get": lambda p: tool.read_rate(p),
}
RATIOS = [("podlink-50", "redis-benchmark", 1.0), ("podlink-500", "redis-benchmark", 2.5), ("podlink-50", "redis-py", 5),
          ("podlink-bulk", "raw-pipeline", 1.2), ("podlink-reads", "redis-benchmark-get", 2),
          ("podlink-alone", "redis-py-alone", -1.0), ("podlink-blocking", "redis-py-blocking", 1.0)]

def main():
    a = argparse.ArgumentParser(); a.add_argument("--redis-url"); a.add_argument("--seconds", type=float, default=1); a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--links", type=int, default=100000); a.add_argument("--kind", default="redis"); a.add_argument("names", nargs="*")
    o = a.parse_args()
    server = None
    if not o.redis_url:
        from sandbox.redis_servers import RedisServer
        server = RedisServer(o.kind).start()
    url = o.redis_url or server.url
    plan = Plan(url, f"podlink-bench-{uuid.uuid4().hex[:6]}", o.links, o.seconds)
    names = o.names or [*EXTERNAL, *MEASURES]
    values = {n: [] for n in names}
    workers = {}
    try:
        with StatefulExecutor.from_url(url) as ex:
            us = uids(plan)
            for s in range(0, len(us), 1000):
                ex.run_many([operations.set_linked_pod(plan.namespace, u, SERVICE, POD) for u in us[s:s+1000]])
        for r in range(o.rounds):
            for n in names:
                if n in EXTERNAL:
                    v = EXTERNAL[n](plan)
                else:
                    if n not in workers:
                        workers[n] = subprocess.Popen([sys.executable, "-m", "podlink.bench.worker", n], stdin=-1, stdout=-1)
                    w = workers[n]
                    w.stdin.write(msgspec.json.encode(plan) + b"\n"); w.stdin.flush()
                    ans = msgspec.json.decode(w.stdout.readline(), type=Answer)
                    if ans.problem: print(n, ans.problem); continue
                    v = ans.value
                values[n].append(v)
                print(f"round {r}: {n:24} {v:12,.1f}", flush=True)
        print()
        med = {n: statistics.median(v) for n, v in values.items() if v}
        for n, v in values.items():
            if v: print(f"{n:24} {med[n]:12,.1f}   {min(v):,.0f} – {max(v):,.0f}")
        for x, y, t in RATIOS:
            if x in med and y in med:
                rr = [p/q for p, q in zip(values[x], values[y])]
                print(f"{x:18} / {y:20} {statistics.median(rr):6.2f}  ({min(rr):.2f} – {max(rr):.2f})  target {'<=' if t<0 else '>='} {abs(t)}")
    finally:
        for w in workers.values(): w.stdin.close(); w.wait()
        if server: server.close()
main()
