--- @include "common"
-- What the workers of a queue know together of when Redis took their beats: who has died can only be told from those who
-- could not beat by what others did meanwhile. After a while without a beat of anybody, Redis was probably away or took
-- no writes, and those who live get time to beat again before anybody takes their jobs. Whoever looks may have been idle,
-- or not there at all, and know nothing of it.

local function pulse_key(queue) return 'mlxq:pulse:' .. queue end

-- A beat has come. p.quiet_s is how long there may be none without any meaning; p.come_back_s the most that is waited for.
local function note_beat(queue)
  local key, now = pulse_key(queue), lease_now()
  make_room('hash', key)
  local last = tonumber(redis.call('HGET', key, 'beat') or now) or now
  local quiet = math.abs(now - last) -- a clock that was set back is one more thing after which nothing is sure
  if quiet > p.quiet_s then
    local wait = math.min(p.come_back_s, 2 * quiet + 2)
    redis.call('HSET', key, 'trusted_from', string.format('%.6f', now + wait))
  end
  redis.call('HSET', key, 'beat', string.format('%.6f', now))
  redis.call('EXPIRE', key, 7 * 24 * 3600)
end

-- Whether a lease that has run out tells of a death.
local function is_silence_telling(queue)
  local key, now = pulse_key(queue), lease_now()
  local trusted_from = is_a('hash', key) and tonumber(redis.call('HGET', key, 'trusted_from') or 0) or 0
  return now >= trusted_from or trusted_from - now > p.come_back_s -- the latter by a clock that was set back
end
