-- Posts random bodies, and prints one line of JSON at the end.
--   wrk … -s post.lua URL -- MANIFEST CONTENT_TYPE SEED
-- MANIFEST lists the files of the bodies, one a line.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[2]
  math.randomseed(tonumber(args[3]))
  statuses = {}
  requests = {}
  for path in io.lines(args[1]) do
    local file = assert(io.open(path, "rb"))
    table.insert(requests, wrk.format(nil, nil, nil, file:read("*a")))
    file:close()
  end
end

function request()
  return requests[math.random(#requests)]
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
