--- @include "when_full"
-- Asks for a batch to be cancelled: its workers look for that.  KEYS: batch hash.  Returns 0 if there is no batch.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
pass_when_full()
redis.call('HSET', KEYS[1], 'cancelled', '1')
return 1
