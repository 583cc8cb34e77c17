"""Parts of a tf.data service in processes of their own: in ours, TensorFlow waits at their end for
whoever still asks them for something, now and then without end."""

import subprocess
import sys
import threading

PROGRAM = """
import sys, time
import tensorflow as tf
api = tf.data.experimental.service
workers, *dispatcher = sys.argv[1:]
if not dispatcher:
    kept = api.DispatchServer()
    dispatcher = [kept.target.removeprefix("grpc://")]
own = [api.WorkerServer(api.WorkerConfig(*dispatcher)) for _ in range(int(workers))]
print(*dispatcher, flush=True)
time.sleep(3600)
"""


class Parts:
    """Processes of a service, which end with the test."""

    def __init__(self):
        self._started = []

    def start(self, workers, dispatcher=None):
        """Start some workers in one process, with a dispatcher if they have none.

        Returns the process, and the dispatcher's address.
        """
        arguments = [str(workers), *([dispatcher] if dispatcher else [])]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True
        )
        self._started.append(process)
        return process, process.stdout.readline().strip()

    def end(self):
        for thread in threading.enumerate():
            if thread.name == "data-service":
                thread.join(20)  # it takes in one more thing, and ends
        for process in self._started:
            process.kill()
            process.wait()
            process.stdout.close()
