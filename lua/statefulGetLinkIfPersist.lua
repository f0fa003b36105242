--[[
  Reads a uid's link to a service if it is permanent; a temporary link, or one in its reconnect window, counts as none.

  KEYS[1] link   string, podId; carries the time to live of a temporary link
  KEYS[2] links  optional: hash, svc -> podId, every link of the uid; not read

  Returns the podId, or -1.
]]
if not KEYS[1] then
  return redis.error_reply('ERR statefulGetLinkIfPersist: KEYS must be the link of a uid')
end
local pod = redis.call('GET', KEYS[1])
if pod and redis.call('PTTL', KEYS[1]) == -1 then
  return pod
end
return -1
