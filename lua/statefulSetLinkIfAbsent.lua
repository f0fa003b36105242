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
local svc, pod, persist, book = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local booking = book and book ~= ''

-- A number as clients write it: decimal, without sign, point or leading zero, so that equal numbers are equal strings.
local function number(text)
  return text == '0' or text and string.find(text, '^[1-9]%d*$') and #text <= 10 and tonumber(text) <= 2147483647
end
local wrong = not links and 'KEYS must be the link and the links of a uid'
  or (svc or '') == '' and 'svc must not be empty'
  or not number(pod) and 'podId must be an integer from 0 to 2147483647, got ' .. tostring(pod)
  or persist ~= '-1' and (persist == '0' or not number(persist))
    and 'persist must be -1 or an integer from 1 to 2147483647, got ' .. tostring(persist)
if wrong then
  return redis.error_reply('ERR statefulSetLinkIfAbsent: ' .. wrong)
end
persist = tonumber(persist)

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
