"""Every number that tunes the engine and is not a setting, in the order that an image meets them."""

# Admission

# Images in flight that are admitted however long the device takes for them.
ALWAYS_ADMITTED = 16

# Decoding and batching

# Full batches of the first stage that are decoded ahead.
DECODED_AHEAD = 4

# Seconds that a worker decodes images of one batch before it runs what it has.
DECODE_SECONDS = 0.02

# Weight of the newest batch in the running averages: seconds of a batch, of decoding, and the share that escalates.
NEWEST_BATCH = 0.1

# How long new images may overtake escalated ones for the sake of a fuller batch, in full batches of the stage before.
OVERTAKING = 4

# Audits

# Share of the workers' time that audits get even when there is other work.
AUDIT_SHARE = 0.01

# Seconds of batches that this share looks back on: an idle day earns audits no minutes of their own.
AUDIT_MEMORY_SECONDS = 60.0

# One in so many feature slots may hold an image that waits for its audit.
AUDIT_SLOTS = 8

# How often audits that make way for another model's work look whether it is done.
YIELD_SECONDS = 0.005

# Trials

# Bytes of encoded images that may wait to be run behind an answer. They were admitted once, and are in flight no more.
MOST_BEHIND_BYTES = 64 << 20

# How often a trial's guard looks at what was counted, and each process tells the others what it counted.
GUARD_SECONDS = 0.2

# Brown-out

# How often the threshold in force is set, and from how many of the latest images.
STEERING_SECONDS = 0.05
STEERING_CONFIDENCES = 1024

# Share of the target that queued work may take; the rest is for decoding, HTTP and chance.
QUEUE_SHARE = 0.6

# Seconds in which the sustainable share of escalations may return from none to all. It drops immediately.
RETURN_SECONDS = 3.0

# Switching models

# How often the runtime config is looked at for models that another replica was told to serve.
FOLLOW_SECONDS = 0.2

# How long replicas that prepare a model, and then those that change over to it, are waited for: so many times as long
# as it took here to prepare it, but not less than this.
PATIENCE = 3.0
MIN_PATIENCE_SECONDS = 2.0

# How long a model is kept ready that another replica is about to ask for, until it does.
PREPARED_SECONDS = 60.0

# How long before a model that could not be served is tried again: its files may yet come.
RETRY_SECONDS = 10.0

# Failures

# Seconds before a thread that replaces a failed one tries the device: doubled each time, up to the last.
FIRST_DEVICE_RETRY_SECONDS, LAST_DEVICE_RETRY_SECONDS = 0.1, 5.0

# Seconds after which a worker that has finished no batch counts as stuck: several times what the largest batch of the
# largest network takes on a busy core.
STALL_SECONDS = 10.0
