--[[
  Reads the states and the loads of a service in one consistent step.

  KEYS[1] states  hash, podId -> state
  KEYS[2] load    optional, else KEYS[1] .. 'load': hash, podId -> number of links
  KEYS[3] expiry  optional, else KEYS[1] .. 'exp': sorted set, "<podId> <link key>" -> Unix ms at which the link ends

  Returns {{podId, state, podId, state, ...}, {podId, load, podId, load, ...}}.
]]
local states = KEYS[1]
if not states then
  return redis.error_reply('ERR statefulGetService: KEYS must be the states of a service')
end
local load, expiry = KEYS[2] or states .. 'load', KEYS[3] or states .. 'exp'

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
