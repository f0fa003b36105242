--[[
  Runs many calls of the scripts below, in order. An error of one is its own reply, and keeps no other from running.

  Calls of one shape that follow each other are a run, and what they have in common is sent once for all of them.

  KEYS  of each run, the keys behind those of the uid

  ARGV  of each run: "<number of the script> <how many KEYS> <how many key tails> <how many arguments before> <own>
        <after>", how many calls, the head and the tails of the uid's keys, the arguments before and after those of a
        call; and then of each call: the uid (where there are tails) and its own arguments

  Returns the reply of each call.
]]
local scripts = {
-- statefulSetLink
function(KEYS, ARGV)
--[[
  Links a uid to a pod of a service, whatever it was linked to before.

  KEYS[1] link     string, podId; carries the time to live of a temporary link
  KEYS[2] links    hash, svc -> podId, every link of the uid
  KEYS[3] load     optional: hash, podId -> number of links
  KEYS[4] expiry   optional, together with load: sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] svc
  ARGV[2] podId
  ARGV[3] persist  -1 (permanent) or seconds > 0
  ARGV[4] book     optional: not empty: the caller books the load itself, on another slot

  Returns the previous podId, or -1.

  With book: {reply, podId that gives a unit back or '', 1 if that unit was a temporary link's else 0, podId that takes
  a unit or '', Unix ms at which its link ends or ''}.
]]
local link, links, load, expiry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local svc, pod, persist, book = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local booking = book and book ~= ''

-- Both keys are looked at before the link is set: one of the wrong type must not leave half a link.
local previous = redis.call('GET', link)
local temporary = previous and redis.call('PTTL', link) >= 0

local ends
if persist > 0 then
  local now = redis.call('TIME')
  ends = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + persist * 1000)
end

local listed = redis.call('HSET', links, svc, pod) == 0
if ends then
  redis.call('SET', link, pod, 'PXAT', ends)
  -- Servers without per-field expiry answer an error here; there the field is pruned when it is read.
  redis.pcall('HPEXPIREAT', links, ends, 'FIELDS', 1, svc)
else
  redis.call('SET', link, pod)
end

if load then
  -- A temporary link holds its unit of load as long as it is a member of expiry: a link in its reconnect window, and
  -- one written by a client that keeps no load, hold none. A permanent link holds one while it is listed.
  local given, taken = listed and previous, pod
  if temporary then
    given = redis.call('ZREM', expiry, previous .. ' ' .. link) == 1 and previous
  end
  -- The unit of an expired link to this very pod that nobody has settled yet passes on to the new link.
  if ends then
    taken = redis.call('ZADD', expiry, ends, pod .. ' ' .. link) == 1 and pod
  elseif temporary or previous ~= pod then
    taken = redis.call('ZREM', expiry, pod .. ' ' .. link) == 0 and pod
  end
  if given ~= taken then
    if given and redis.call('HINCRBY', load, given, -1) <= 0 then
      redis.call('HDEL', load, given)
    end
    if taken then
      redis.call('HINCRBY', load, taken, 1)
    end
  end
end

if booking then
  local given = (temporary or listed) and previous or ''
  return {previous or -1, given, temporary and 1 or 0, pod, ends or ''}
end
return previous or -1
end,
-- statefulTrySetLink
function(KEYS, ARGV)
--[[
  Links a uid to a pod of a service, unless it has a permanent link to another pod. A temporary link, or one in its
  reconnect window, does not stand in the way; nor does a permanent link to the pod given as expected (that is how an
  owner moves its own link).

  KEYS[1] link      string, podId; carries the time to live of a temporary link
  KEYS[2] links     hash, svc -> podId, every link of the uid
  KEYS[3] load      optional: hash, podId -> number of links
  KEYS[4] expiry    optional, together with load: sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] svc
  ARGV[2] podId
  ARGV[3] persist   -1 (permanent) or seconds > 0
  ARGV[4] expected  optional: podId whose permanent link may be replaced; empty: none
  ARGV[5] book      optional: not empty: the caller books the load itself, on another slot

  Returns {current podId, 1 if ours is set else 0}.

  With book: {reply, podId that gives a unit back or '', 1 if that unit was a temporary link's else 0, podId that takes
  a unit or '', Unix ms at which its link ends or ''}.
]]
local link, links, load, expiry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local svc, pod, persist, expected, book = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local booking = book and book ~= ''

-- Both keys are looked at before the link is set: one of the wrong type must not leave half a link.
local previous = redis.call('GET', link)
local temporary = previous and redis.call('PTTL', link) >= 0

if previous and not temporary and previous ~= pod and previous ~= expected then
  return booking and {{previous, 0}, '', 0, '', ''} or {previous, 0}
end

local ends
if persist > 0 then
  local now = redis.call('TIME')
  ends = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + persist * 1000)
end

local listed = redis.call('HSET', links, svc, pod) == 0
if ends then
  redis.call('SET', link, pod, 'PXAT', ends)
  -- Servers without per-field expiry answer an error here; there the field is pruned when it is read.
  redis.pcall('HPEXPIREAT', links, ends, 'FIELDS', 1, svc)
else
  redis.call('SET', link, pod)
end

if load then
  -- A temporary link holds its unit of load as long as it is a member of expiry: a link in its reconnect window, and
  -- one written by a client that keeps no load, hold none. A permanent link holds one while it is listed.
  local given, taken = listed and previous, pod
  if temporary then
    given = redis.call('ZREM', expiry, previous .. ' ' .. link) == 1 and previous
  end
  -- The unit of an expired link to this very pod that nobody has settled yet passes on to the new link.
  if ends then
    taken = redis.call('ZADD', expiry, ends, pod .. ' ' .. link) == 1 and pod
  elseif temporary or previous ~= pod then
    taken = redis.call('ZREM', expiry, pod .. ' ' .. link) == 0 and pod
  end
  if given ~= taken then
    if given and redis.call('HINCRBY', load, given, -1) <= 0 then
      redis.call('HDEL', load, given)
    end
    if taken then
      redis.call('HINCRBY', load, taken, 1)
    end
  end
end

if booking then
  local given = (temporary or listed) and previous or ''
  return {{pod, 1}, given, temporary and 1 or 0, pod, ends or ''}
end
return {pod, 1}
end,
-- statefulSetLinkIfAbsent
function(KEYS, ARGV)
--[[
  Links a uid to a pod of a service when it has no link to that service. A link in its reconnect window is a link: it
  is returned, and neither its pod nor its time to live changes.

  KEYS[1] link     string, podId; carries the time to live of a temporary link
  KEYS[2] links    hash, svc -> podId, every link of the uid
  KEYS[3] load     optional: hash, podId -> number of links
  KEYS[4] expiry   optional, together with load: sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] svc
  ARGV[2] podId
  ARGV[3] persist  -1 (permanent) or seconds > 0
  ARGV[4] book     optional: not empty: the caller books the load itself, on another slot

  Returns the podId now linked.

  With book: {reply, podId that gives a unit back or '', 1 if that unit was a temporary link's else 0, podId that takes
  a unit or '', Unix ms at which its link ends or ''}.
]]
local link, links, load, expiry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local svc, pod, persist, book = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local booking = book and book ~= ''

local current = redis.call('GET', link)
if current then
  return booking and {current, '', 0, '', ''} or current
end

local ends
if persist > 0 then
  local now = redis.call('TIME')
  ends = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + persist * 1000)
end

redis.call('HSET', links, svc, pod)
if ends then
  redis.call('SET', link, pod, 'PXAT', ends)
  -- Servers without per-field expiry answer an error here; there the field is pruned when it is read.
  redis.pcall('HPEXPIREAT', links, ends, 'FIELDS', 1, svc)
else
  redis.call('SET', link, pod)
end

if load then
  -- The unit of an expired link to this very pod that nobody has settled yet passes on to the new link.
  local taken
  if ends then
    taken = redis.call('ZADD', expiry, ends, pod .. ' ' .. link) == 1
  else
    taken = redis.call('ZREM', expiry, pod .. ' ' .. link) == 0
  end
  if taken then
    redis.call('HINCRBY', load, pod, 1)
  end
end

if booking then
  return {pod, '', 0, pod, ends or ''}
end
return pod
end,
-- statefulRemoveLink
function(KEYS, ARGV)
--[[
  Removes a uid's link to a service, whatever pod it points at. With a reconnect window the string stays that many
  seconds more, unlisted and without load, so that the uid still finds its pod.

  KEYS[1] link     string, podId; carries the time to live of a temporary link
  KEYS[2] links    hash, svc -> podId, every link of the uid
  KEYS[3] load     optional: hash, podId -> number of links
  KEYS[4] expiry   optional, together with load: sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] svc
  ARGV[2] persist  seconds > 0 of reconnect window, else gone at once
  ARGV[3] book     optional: not empty: the caller books the load itself, on another slot

  Returns 1, or 0 when there was no link.

  With book: {reply, podId that gives a unit back or '', 1 if that unit was a temporary link's else 0, podId that takes
  a unit or '', Unix ms at which its link ends or ''}.
]]
local link, links, load, expiry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local svc, persist, book = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local booking = book and book ~= ''

-- All reads come before the first write: a key of the wrong type must not leave half a link.
local previous = redis.call('GET', link)
local temporary = previous and redis.call('PTTL', link) >= 0
local window = persist > 0

-- The field goes even when there is no string: none outlives its string.
local listed = redis.call('HDEL', links, svc) == 1
if not previous then
  return booking and {0, '', 0, '', ''} or 0
end

if window then
  local now = redis.call('TIME')
  local ends = now[1] * 1000 + math.floor(now[2] / 1000) + persist * 1000
  redis.call('PEXPIREAT', link, string.format('%.0f', ends))
else
  redis.call('DEL', link)
end

if load then
  -- A temporary link holds its unit of load as long as it is a member of expiry: a link in its reconnect window, and
  -- one written by a client that keeps no load, hold none. A permanent link holds one while it is listed.
  local given = listed and previous
  if temporary then
    given = redis.call('ZREM', expiry, previous .. ' ' .. link) == 1 and previous
  end
  if given and redis.call('HINCRBY', load, given, -1) <= 0 then
    redis.call('HDEL', load, given)
  end
end

if booking then
  return {1, (temporary or listed) and previous or '', temporary and 1 or 0, '', ''}
end
return 1
end,
-- statefulRemoveLinkWithId
function(KEYS, ARGV)
--[[
  Removes a uid's link to a service only while it points at the given pod (compare-and-delete). With a reconnect window
  the string stays that many seconds more, unlisted and without load, so that the uid still finds its pod.

  KEYS[1] link     string, podId; carries the time to live of a temporary link
  KEYS[2] links    hash, svc -> podId, every link of the uid
  KEYS[3] load     optional: hash, podId -> number of links
  KEYS[4] expiry   optional, together with load: sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] svc
  ARGV[2] podId
  ARGV[3] persist  seconds > 0 of reconnect window, else gone at once
  ARGV[4] book     optional: not empty: the caller books the load itself, on another slot

  Returns 1, or 0 when there was no link to that pod.

  With book: {reply, podId that gives a unit back or '', 1 if that unit was a temporary link's else 0, podId that takes
  a unit or '', Unix ms at which its link ends or ''}.
]]
local link, links, load, expiry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local svc, pod, persist, book = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local booking = book and book ~= ''

-- All reads come before the first write: a key of the wrong type must not leave half a link.
local previous = redis.call('GET', link)
local temporary = previous and redis.call('PTTL', link) >= 0
local window = persist > 0

if previous and previous ~= pod then
  return booking and {0, '', 0, '', ''} or 0
end

-- The field goes even when there is no string: none outlives its string.
local listed = redis.call('HDEL', links, svc) == 1
if not previous then
  return booking and {0, '', 0, '', ''} or 0
end

if window then
  local now = redis.call('TIME')
  local ends = now[1] * 1000 + math.floor(now[2] / 1000) + persist * 1000
  redis.call('PEXPIREAT', link, string.format('%.0f', ends))
else
  redis.call('DEL', link)
end

if load then
  -- A temporary link holds its unit of load as long as it is a member of expiry: a link in its reconnect window, and
  -- one written by a client that keeps no load, hold none. A permanent link holds one while it is listed.
  local given = listed and previous
  if temporary then
    given = redis.call('ZREM', expiry, previous .. ' ' .. link) == 1 and previous
  end
  if given and redis.call('HINCRBY', load, given, -1) <= 0 then
    redis.call('HDEL', load, given)
  end
end

if booking then
  return {1, (temporary or listed) and previous or '', temporary and 1 or 0, '', ''}
end
return 1
end,
-- statefulGetLinkIfPersist
function(KEYS, ARGV)
--[[
  Reads a uid's link to a service if it is permanent; a temporary link, or one in its reconnect window, counts as none.

  KEYS[1] link   string, podId; carries the time to live of a temporary link
  KEYS[2] links  optional: hash, svc -> podId, every link of the uid; not read

  Returns the podId, or -1.
]]
local pod = redis.call('GET', KEYS[1])
if pod and redis.call('PTTL', KEYS[1]) == -1 then
  return pod
end
return -1
end,
-- statefulComputeLinkIfAbsent
function(KEYS, ARGV)
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
local svc, persist = ARGV[1], tonumber(ARGV[2])

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
end,
-- statefulGetLinkService
function(KEYS, ARGV)
--[[
  Lists every link of a uid. Fields whose string is gone (expired on a server without per-field expiry, or left behind
  by a client that expires the string alone) are deleted and not returned.

  KEYS[1] links  hash, svc -> podId, every link of the uid; or the string of one of its links, then KEYS[2] is the hash
  KEYS[2] links  optional: the hash

  Returns svc, podId, svc, podId, ... in one flat list.
]]
local links = KEYS[2] or KEYS[1]
local fields = redis.call('HGETALL', links)
local found, gone = {}, {}
for i = 1, #fields, 2 do
  -- The string's key is the hash's key with the service behind it, so both are in one slot.
  local pod = redis.call('GET', links .. fields[i])
  if pod then
    found[#found + 1] = fields[i]
    found[#found + 1] = pod
  else
    gone[#gone + 1] = fields[i]
  end
end
for _, svc in ipairs(gone) do
  redis.call('HDEL', links, svc)
end
return found
end,
-- statefulSetState
function(KEYS, ARGV)
--[[
  Writes the state of one pod, or of a workload, unless a newer version is stored; an empty state removes it. Versions
  are Kubernetes resourceVersions, compared as decimal strings: a Lua number is a double and loses digits above 2^53.
  An equal version is written again (that is idempotent). A write without version always passes and forgets the stored
  version, so that the next versioned write passes too.

  A removal leaves its version behind, so that a late write of an older version cannot bring the state back. It goes an
  hour after the last state of the service (or the workload) has gone.

  KEYS[1] states    hash, podId -> state; for a workload: string, state
  KEYS[2] versions  optional, else KEYS[1] .. 'rv': hash, podId -> version; for a workload: string, version

  ARGV[1] podId     empty: KEYS[1] is a workload's
  ARGV[2] state     empty: remove
  ARGV[3] version   optional: decimal digits; empty or left out: write whatever is stored

  Returns 1 if applied, 0 if a newer version is stored.
]]
local states, versions = KEYS[1], KEYS[2] or KEYS[1] .. 'rv'
local pod, state, version = ARGV[1], ARGV[2], ARGV[3] or ''
local workload = pod == ''
local TOMBSTONE_SECONDS = 3600

if not string.match(version, '^%d*$') then
  return redis.error_reply('ERR version must be decimal digits: ' .. version)
end

local stored
if workload then
  stored = redis.call('GET', versions)
else
  stored = redis.call('HGET', versions, pod)
end
if stored and version ~= '' then
  local ours = string.gsub(version, '^0+', '')
  local theirs = string.gsub(stored, '^0+', '')
  if #theirs > #ours or (#theirs == #ours and theirs > ours) then
    return 0
  end
end

if workload then
  if state == '' then
    redis.call('DEL', states)
  else
    redis.call('SET', states, state)
  end
  if version == '' then
    redis.call('DEL', versions)
  elseif state == '' then
    redis.call('SET', versions, version, 'EX', TOMBSTONE_SECONDS)
  else
    redis.call('SET', versions, version)
  end
  return 1
end

if state == '' then
  redis.call('HDEL', states, pod)
else
  redis.call('HSET', states, pod, state)
end
if version == '' then
  redis.call('HDEL', versions, pod)
else
  redis.call('HSET', versions, pod, version)
end
if redis.call('EXISTS', states) == 0 then
  redis.call('EXPIRE', versions, TOMBSTONE_SECONDS)
else
  redis.call('PERSIST', versions)
end
return 1
end,
-- statefulGetServicePod
function(KEYS, ARGV)
--[[
  Picks the least loaded routable pod (state Ready) of a service and reserves one unit of its load; or, given a podId,
  takes one such unit back; or books what a link of another slot gave back and took. It is what linking on Redis Cluster
  is made of, where a service and a uid live in two slots.

  KEYS[1] states     hash, podId -> state
  KEYS[2] load       optional, else KEYS[1] .. 'load': hash, podId -> number of links
  KEYS[3] expiry     optional, else KEYS[1] .. 'exp': sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] podId      optional: give one unit of this pod back instead of picking one; empty: none
  ARGV[2] link       optional: key of the link to book for; empty: none
  ARGV[3] temporary  optional: 1: the unit of podId is a temporary link's, and is held while it is a member of expiry
  ARGV[4] taken      optional: podId that takes one unit; empty: none
  ARGV[5] ends       optional: Unix ms at which the link to taken ends; empty: never

  Returns the podId, or -1: no routable pod, or nothing to give back. For a booking, what it gave back.
]]
local states, load, expiry = KEYS[1], KEYS[2] or KEYS[1] .. 'load', KEYS[3] or KEYS[1] .. 'exp'
local returned, link, temporary = ARGV[1] or '', ARGV[2] or '', ARGV[3] == '1'
local taken, ends = ARGV[4] or '', ARGV[5] or ''

local left
if returned ~= '' and (not temporary or redis.call('ZREM', expiry, returned .. ' ' .. link) == 1) then
  left = redis.call('HINCRBY', load, returned, -1)
  if left <= 0 then
    redis.call('HDEL', load, returned)
  end
end
if taken ~= '' then
  -- The unit of an expired link to this very pod that nobody has settled yet passes on to the new link.
  local takes
  if ends ~= '' then
    takes = redis.call('ZADD', expiry, ends, taken .. ' ' .. link) == 1
  else
    takes = redis.call('ZREM', expiry, taken .. ' ' .. link) == 0
  end
  if takes then
    redis.call('HINCRBY', load, taken, 1)
  end
end
if returned ~= '' or taken ~= '' then
  return left and left >= 0 and returned or -1
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

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

redis.call('HINCRBY', load, pod, 1)
return pod
end,
-- statefulGetService
function(KEYS, ARGV)
--[[
  Reads the states and the loads of a service in one consistent step.

  KEYS[1] states  hash, podId -> state
  KEYS[2] load    optional, else KEYS[1] .. 'load': hash, podId -> number of links
  KEYS[3] expiry  optional, else KEYS[1] .. 'exp': sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  Returns {{podId, state, podId, state, ...}, {podId, load, podId, load, ...}}.
]]
local states, load, expiry = KEYS[1], KEYS[2] or KEYS[1] .. 'load', KEYS[3] or KEYS[1] .. 'exp'

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

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

return {redis.call('HGETALL', states), redis.call('HGETALL', load)}
end,
-- readLink
function(KEYS, ARGV)
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
end,
-- GET
function(KEYS) return redis.call('GET', KEYS[1]) end,
}
local replies, done, keys_before, at = {}, 0, 0, 1
while ARGV[at] do
  local number, key_count, tails, before, own, after =
    string.match(ARGV[at], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  tails, before, own, after = tonumber(tails), tonumber(before), tonumber(own), tonumber(after)
  local script, call_count, head = scripts[tonumber(number)], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local keys, args, tail_of = {}, {}, {}
  at = at + 2
  for i = 1, tails do
    tail_of[i] = ARGV[at + i]
  end
  at = at + tails
  for i = 1, tonumber(key_count) do
    keys[tails + i] = KEYS[keys_before + i]
  end
  keys_before = keys_before + tonumber(key_count)
  for i = 1, before do
    args[i] = ARGV[at + i]
  end
  at = at + before
  for i = 1, after do
    args[before + own + i] = ARGV[at + i]
  end
  at = at + after
  for _ = 1, call_count do
    if tails > 0 then
      at = at + 1
      for i = 1, tails do
        keys[i] = head .. ARGV[at] .. tail_of[i]
      end
    end
    for i = 1, own do
      args[before + i] = ARGV[at + i]
    end
    at = at + own
    local fine, reply = pcall(script, keys, args)
    if not fine and type(reply) ~= 'table' then
      reply = redis.error_reply(reply)
    end
    if reply == nil then
      reply = false
    end
    done = done + 1
    replies[done] = reply
  end
  at = at + 1
end
return replies
