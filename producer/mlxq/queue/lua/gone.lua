-- KEYS: job hashes.  Returns the indices of those that don't exist, from 0.
local gone = {}
for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 0 then gone[#gone + 1] = i - 1 end
end
return gone
