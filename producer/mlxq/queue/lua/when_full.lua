-- A Redis whose memory is full refuses what could take more of it. Of a script it refuses that only up to its first
-- write, since it can't be stopped halfway: one that begins with a write that takes nothing goes through. For scripts
-- that free memory, or let others free it; in a transaction not even a deletion goes through.
local function pass_when_full() redis.call('DEL', 'mlxq:nothing') end
