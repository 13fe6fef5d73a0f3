-- The newest return value of each of these streams of RQ's results; false where there is none.
-- KEYS: the streams.
local values = {}
for i, key in ipairs(KEYS) do
  local entries = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  values[i] = false
  if not entries.err and entries[1] then
    local fields = entries[1][2]
    for j = 1, #fields, 2 do
      if fields[j] == 'return_value' then values[i] = fields[j + 1] end
    end
  end
end
return values
