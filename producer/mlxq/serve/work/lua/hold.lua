--- @include "values"
--- @include "when_full"
-- Takes or renews leases.  KEYS: leases.  ARGV: owner, milliseconds.  Returns 1 for each that is the owner's, else 0.
pass_when_full()
local held = {}
for i, key in ipairs(KEYS) do
  make_room('string', key)
  local owner = redis.call('GET', key)
  held[i] = 0
  if not owner or owner == ARGV[1] then
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
    held[i] = 1
  end
end
return held
