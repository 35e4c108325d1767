"""All tuning constants of the engine that are not settings, in the order in which an image meets them."""

# Admission

# Images in flight that are always admitted, however slow the device.
ALWAYS_ADMITTED = 16

# Decoding and batching

# Full batches of the first stage that are decoded in advance.
DECODED_AHEAD = 4

# Seconds for which a worker decodes images of one batch before it runs what it has.
DECODE_SECONDS = 0.02

# Weight of the newest batch in the running averages: seconds of a batch, of decoding, and the share that escalates.
NEWEST_BATCH = 0.1

# How long new images may overtake escalated ones for the sake of a fuller batch, in full batches of the stage before.
OVERTAKING = 4

# Audits

# Share of the workers' time that audits get even if there is other work.
AUDIT_SHARE = 0.01

# Window of that share, in seconds of batches: an idle day must not earn audits minutes at once.
AUDIT_MEMORY_SECONDS = 60.0

# At most one in so many feature slots may hold an image that waits for its audit.
AUDIT_SLOTS = 8

# Interval at which audits check whether the other model's work is done.
YIELD_SECONDS = 0.005

# Trials

# Bytes of encoded images that may wait to be run behind an answer. They were admitted once, and are in flight no more.
MOST_BEHIND_BYTES = 64 << 20

# Interval at which a trial's guard checks the counts, and each process reports its own.
GUARD_SECONDS = 0.2

# Brown-out

# Interval at which the threshold in force is set, and the number of recent images it uses.
STEERING_SECONDS = 0.05
STEERING_CONFIDENCES = 1024

# Share of the target latency for queued work; the rest is for decoding, HTTP and variation.
QUEUE_SHARE = 0.6

# Seconds in which the sustainable share of escalations may recover from none to all. It drops immediately.
RETURN_SECONDS = 3.0

# Switching models

# Interval of checks for models that another replica announces.
FOLLOW_SECONDS = 0.2

# How long to wait for replicas that prepare a model, and then for those that switch to it: this many times as long as
# the preparation took here, within bounds.
PATIENCE = 3.0
MIN_PATIENCE_SECONDS = 2.0
MAX_PATIENCE_SECONDS = 120.0

# How long a model announced by another replica is kept ready.
PREPARED_SECONDS = 60.0

# Seconds until a model that could not be served is tried again: its files may arrive later.
RETRY_SECONDS = 10.0

# Failures

# Seconds before the thread that replaces a failed one tries the device: doubled each time, up to the last.
FIRST_DEVICE_RETRY_SECONDS, LAST_DEVICE_RETRY_SECONDS = 0.1, 5.0

# Seconds after which a worker that has finished no batch counts as stuck: several times what the largest batch of the
# largest network takes on a busy core.
STALL_SECONDS = 10.0
