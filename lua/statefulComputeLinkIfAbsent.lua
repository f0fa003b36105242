--[[
  Returns the pod a uid is linked to; when there is none, picks the least loaded routable pod (state Ready) of the
  service and links it, in one step. A link in its reconnect window is a link: it is returned unchanged.

  Called with KEYS[1] and KEYS[2] alone, it derives the other three from KEYS[2]; on Redis Cluster these live in
  another slot than the uid's keys.

  KEYS[1] link     string, podId; carries the time to live of a temporary link
  KEYS[2] links    hash, svc -> podId, every link of the uid
  KEYS[3] load     optional: hash, podId -> number of links
  KEYS[4] expiry   optional: sorted set, "<podId> <link key>" -> Unix ms at which the link ends
  KEYS[5] states   optional: hash, podId -> state

  ARGV[1] svc
  ARGV[2] persist  -1 (permanent) or seconds > 0

  Returns the podId now linked, or -1 when there is no link and no routable pod.
]]
local link, links, load, expiry, states = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local svc, persist = ARGV[1], ARGV[2]

-- A number as clients write it: decimal, without sign, point or leading zero, so that equal numbers are equal strings.
local function number(text)
  return text == '0' or text and string.find(text, '^[1-9]%d*$') and #text <= 10 and tonumber(text) <= 2147483647
end
local wrong = not links and 'KEYS must be the link and the links of a uid'
  or (svc or '') == '' and 'svc must not be empty'
  or persist ~= '-1' and (persist == '0' or not number(persist))
    and 'persist must be -1 or an integer from 1 to 2147483647, got ' .. tostring(persist)
if wrong then
  return redis.error_reply('ERR statefulComputeLinkIfAbsent: ' .. wrong)
end
persist = tonumber(persist)

local current = redis.call('GET', link)
if current then
  return current
end

if not states then
  local namespace = string.match(links, '^sf:{([^:]*):lk:')
  if not namespace then
    return redis.error_reply('ERR KEYS[2] is not the hash of a uid, sf:{<ns>:lk:<uid>}: ' .. links)
  end
  states = 'sf:{' .. namespace .. ':state:' .. svc .. '}'
  load, expiry = states .. 'load', states .. 'exp'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = persist > 0 and string.format('%.0f', now + persist * 1000)

-- Settle: temporary links that have ended give their load back. The bound keeps one call short after a mass expiry.
local ended = redis.call('ZRANGEBYSCORE', expiry, '-inf', string.format('%.0f', now), 'LIMIT', 0, 1000)
for _, member in ipairs(ended) do
  local its_pod = string.match(member, '^[^ ]*')
  if redis.call('HINCRBY', load, its_pod, -1) <= 0 then
    redis.call('HDEL', load, its_pod)
  end
end
if #ended > 0 then
  redis.call('ZREM', expiry, unpack(ended))
end

local load_of = {}
local loads = redis.call('HGETALL', load)
for i = 1, #loads, 2 do
  load_of[loads[i]] = loads[i + 1]
end

local least, count, candidates = math.huge, 0, {}
local pods = redis.call('HGETALL', states)
for i = 1, #pods, 2 do
  local pod = pods[i]
  -- One whose load another client made unreadable is not picked: nobody could count there.
  local its_load = pods[i + 1] == 'Ready' and tonumber(load_of[pod] or 0)
  if its_load then
    if its_load < least then
      least, count = its_load, 0
    end
    if its_load == least then
      count = count + 1
      candidates[count] = pod
    end
  end
end
if count == 0 then
  return -1
end
-- math.random would do the same in every run: its seed is reset before each script.
local pod = candidates[time[2] % count + 1]

redis.call('HSET', links, svc, pod)
-- The unit of an expired link to this very pod that nobody has settled yet passes on to the new link.
local taken
if ends then
  redis.call('SET', link, pod, 'PXAT', ends)
  -- Servers without per-field expiry answer an error here; there the field is pruned when it is read.
  redis.pcall('HPEXPIREAT', links, ends, 'FIELDS', 1, svc)
  taken = redis.call('ZADD', expiry, ends, pod .. ' ' .. link) == 1
else
  redis.call('SET', link, pod)
  taken = redis.call('ZREM', expiry, pod .. ' ' .. link) == 0
end
if taken then
  redis.call('HINCRBY', load, pod, 1)
end

return pod
