--[[
  Removes a uid's link to a service only while it points at the given pod (compare-and-delete). With a reconnect window
  the string stays that many seconds more, unlisted and without load, so that the uid still finds its pod.

  KEYS[1] link     string, podId; carries the time to live of a temporary link
  KEYS[2] links    hash, svc -> podId, every link of the uid
  KEYS[3] load     optional: hash, podId -> number of links
  KEYS[4] expiry   optional, together with load: sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  ARGV[1] svc
  ARGV[2] podId
  ARGV[3] persist  seconds > 0 of reconnect window; 0 or -1: gone at once
  ARGV[4] book     optional: not empty: the caller books the load itself, on another slot

  Returns 1, or 0 when there was no link to that pod.

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
  or persist ~= '-1' and not number(persist)
    and 'persist must be -1, 0 or an integer up to 2147483647, got ' .. tostring(persist)
if wrong then
  return redis.error_reply('ERR statefulRemoveLinkWithId: ' .. wrong)
end
persist = tonumber(persist)

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
