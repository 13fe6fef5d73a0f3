--- @include "values"
-- Gives leases up.  KEYS: leases.  ARGV: owner.  Returns 1 for each that was the owner's, else 0.
local given = {}
for i, key in ipairs(KEYS) do
  given[i] = 0
  if is_a('string', key) and redis.call('GET', key) == ARGV[1] then
    redis.call('DEL', key)
    given[i] = 1
  end
end
return given
