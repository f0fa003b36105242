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
local svc, pod, persist, expected, book = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
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
  or (expected or '') ~= '' and not number(expected)
    and 'expected must be an integer from 0 to 2147483647, or empty, got ' .. tostring(expected)
if wrong then
  return redis.error_reply('ERR statefulTrySetLink: ' .. wrong)
end
persist = tonumber(persist)

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
