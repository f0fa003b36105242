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
local states = KEYS[1]
local returned, link, temporary = ARGV[1] or '', ARGV[2] or '', ARGV[3] == '1'
local taken, ends = ARGV[4] or '', ARGV[5] or ''

-- A number as clients write it: decimal, without sign, point or leading zero, so that equal numbers are equal strings.
local function number(text)
  return text == '0' or text and string.find(text, '^[1-9]%d*$') and #text <= 10 and tonumber(text) <= 2147483647
end
local wrong = not states and 'KEYS must be the states of a service'
  or returned ~= '' and not number(returned)
    and 'podId must be an integer from 0 to 2147483647, or empty, got ' .. tostring(returned)
  or taken ~= '' and not number(taken)
    and 'taken must be an integer from 0 to 2147483647, or empty, got ' .. tostring(taken)
  or (returned ~= '' and temporary or taken ~= '') and link == '' and 'link must be the key of the link to book for'
  or not string.match(ends, '^%d*$') and 'ends must be Unix time in milliseconds, or empty, got ' .. tostring(ends)
if wrong then
  return redis.error_reply('ERR statefulGetServicePod: ' .. wrong)
end
local load, expiry = KEYS[2] or states .. 'load', KEYS[3] or states .. 'exp'

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
