from sa2va_trl.data.workers import Workers


def test_one_process_works_as_results_are_asked_for():
    begun = []

    def jobs():
        for number in range(5):
            begun.append(number)
            yield number, 2

    with Workers(1) as workers:
        results = workers.map(pow, jobs())
        assert next(results) == 0 and begun == [0]
        assert list(results) == [1, 4, 9, 16]


def test_few_jobs_wait_for_several_processes():
    begun = []

    class Future:
        def __init__(self, value):
            self.value = value

        def result(self):
            return self.value

    class Pool:
        def submit(self, function, *job):
            begun.append(job)
            return Future(function(*job))

    workers = Workers(1)
    workers.pool, workers.count = Pool(), 2
    results = workers.map(pow, ((number, 2) for number in range(20)))
    assert next(results) == 0 and len(begun) == 5
    assert list(results) == [number**2 for number in range(1, 20)]
