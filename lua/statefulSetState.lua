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
local states, versions = KEYS[1], KEYS[2] or (KEYS[1] or '') .. 'rv'
local pod, state, version = ARGV[1], ARGV[2], ARGV[3] or ''
local workload = pod == ''
local TOMBSTONE_SECONDS = 3600

-- A number as clients write it: decimal, without sign, point or leading zero, so that equal numbers are equal strings.
local function number(text)
  return text == '0' or text and string.find(text, '^[1-9]%d*$') and #text <= 10 and tonumber(text) <= 2147483647
end
local wrong = not states and 'KEYS must be the states of a service, or the state of a workload'
  or not workload and not number(pod)
    and 'podId must be an integer from 0 to 2147483647, or empty for a workload, got ' .. tostring(pod)
  or not state and 'state must be given; empty removes it'
  or not string.match(version, '^%d*$') and 'version must be decimal digits, got ' .. tostring(version)
if wrong then
  return redis.error_reply('ERR statefulSetState: ' .. wrong)
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
