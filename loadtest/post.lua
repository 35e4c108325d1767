-- Posts random bodies, and prints one line of JSON at the end.
--   wrk … -s post.lua URL -- MANIFEST CONTENT_TYPE SEED [REPEATS]
-- MANIFEST lists the files of the bodies, one a line. With REPEATS, a share, every body is made unlike all others by what
-- is appended to it, and that share of the requests repeats one sent before.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[2]
  math.randomseed(tonumber(args[3]))
  seed, repeats, sent = args[3], tonumber(args[4]), 0
  statuses = {}
  bodies = {}
  requests = {}
  for path in io.lines(args[1]) do
    local file = assert(io.open(path, "rb"))
    local body = file:read("*a")
    table.insert(bodies, body)
    table.insert(requests, wrk.format(nil, nil, nil, body))
    file:close()
  end
end

function request()
  if not repeats then
    return requests[math.random(#requests)]
  end
  local index = sent
  if sent > 0 and math.random() < repeats then
    index = math.random(0, sent - 1)
  else
    sent = sent + 1
  end
  return wrk.format(nil, nil, nil, bodies[index % #bodies + 1] .. " " .. seed .. " " .. index)
end

function response(status)
  statuses[tostring(status)] = (statuses[tostring(status)] or 0) + 1
end

function done(summary, latency)
  local counts = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do
      counts[status] = (counts[status] or 0) + count
    end
  end
  local parts = {}
  for status, count in pairs(counts) do
    table.insert(parts, string.format('"%s": %d', status, count))
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "statuses": {%s}, "broken": %d, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, table.concat(parts, ", "),
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3))
end
