--[[
  Lists every link of a uid. Fields whose string is gone (expired on a server without per-field expiry, or left behind
  by a client that expires the string alone) are deleted and not returned.

  KEYS[1] links  hash, svc -> podId, every link of the uid; or the string of one of its links, then KEYS[2] is the hash
  KEYS[2] links  optional: the hash

  Returns svc, podId, svc, podId, ... in one flat list.
]]
local links = KEYS[2] or KEYS[1]
if not links then
  return redis.error_reply('ERR statefulGetLinkService: KEYS must be the links of a uid')
end
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
