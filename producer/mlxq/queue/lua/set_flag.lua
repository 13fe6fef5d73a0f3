--- @include "when_full"
-- Sets a flag of a batch, for those to see who look at it.  KEYS: batch hash.  ARGV: the flag.
-- Returns 0 if there is no batch.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
pass_when_full()
redis.call('HSET', KEYS[1], ARGV[1], '1')
return 1
