"""Sees when a model's process is to end.

Either its model hangs, which Triton would wait for without end, or Triton is gone, which Triton's own code in
this process does not see where it died with a lock in shared memory.
"""

import os
import threading
import time

LOOK_SECONDS = 1.0
# Beyond the last caller's patience, whatever still computes hangs. A package's process is given less
# (python_package.py), so that it is that one which ends.
GRACE_SECONDS = 15.0
# And whatever computes so long, whoever waits for it.
LONGEST_RUN_SECONDS = 600.0


class Watchdog:
    """Looks at the run of the model that is under way, from a thread of its own."""

    def __init__(self, end):
        """`end` is called with the reason."""
        self._end = end
        self._triton = os.getppid()
        # Held while a run's requests are asked something: they must not be answered meanwhile.
        self._lock = threading.Lock()
        self._requests = None
        self._began = 0.0
        # When it was first seen that nobody waits.
        self._given_up = None
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def begins(self, requests):
        """The model has been given these."""
        self._began, self._given_up = time.monotonic(), None
        self._requests = requests

    def ends(self):
        """It has said something about them."""
        with self._lock:
            self._requests = None

    def _look(self):
        why = ""
        while not why:
            time.sleep(LOOK_SECONDS)
            with self._lock:
                why = self._why_hung() if self._requests else ""
            if os.getppid() != self._triton:
                why = "Triton is gone"
        self._end(why)

    def _why_hung(self):
        now = time.monotonic()
        if now - self._began > LONGEST_RUN_SECONDS:
            return f"it hangs: it has computed for {LONGEST_RUN_SECONDS:.0f} s"
        # Each question goes to Triton and back: a run that may yet end by itself is not asked.
        if now - self._began < GRACE_SECONDS:
            return ""
        if not all(request.is_cancelled() for request in self._requests):
            self._given_up = None
        elif self._given_up is None:
            # One that is only slower than its callers wait ends by itself.
            self._given_up = now
        elif now - self._given_up > GRACE_SECONDS:
            return "it hangs: nobody waits for its answer any more"
        return ""
