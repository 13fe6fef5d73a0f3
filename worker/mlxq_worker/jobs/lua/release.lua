--- @include "common"
-- Gives one job back to its queue, with p.strikes more strikes. Returns 1, or 0 if it wasn't ours.
local held = holds_lease(p.queue, p.job, p.execution)
close_execution(p.queue, p.job, p.execution, p.worker)
if not held or not is_ours('hash', job_key(p.job)) then return 0 end
put_back(p.queue, p.job, p.strikes > 0 and add_strikes(p.job, p.strikes) or 0)
return 1
