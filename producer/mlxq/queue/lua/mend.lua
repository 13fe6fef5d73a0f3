--- @include "values"
-- Makes room where keys hold something else than they should, and tells what was found here and by other scripts.
-- KEYS: keys.  ARGV: 1 to take what other scripts have noted, else 0; then the type that each key should have.
-- Returns for each broken key: the key, the type that belongs there, the one that was found, moved or kept.
local broken = {}
local function report(key)
  local kind, found, became = string.match(redis.call('HGET', BROKEN, key), '^(%S+) (%S+) (%S+)$')
  redis.call('HDEL', BROKEN, key)
  if kind then broken[#broken + 1] = {key, kind, found, became} end
end

for i, key in ipairs(KEYS) do
  if not is_a(ARGV[i + 1], key) then
    make_room(ARGV[i + 1], key)
    if redis.call('HEXISTS', BROKEN, key) == 1 then report(key) end
  end
end
if ARGV[1] == '1' and type_of(BROKEN) ~= 'none' then
  make_room('hash', BROKEN)
  for _, key in ipairs(redis.call('HKEYS', BROKEN)) do report(key) end
end
return broken
