"""An ordinary threaded program: 100 threads share a number of short queries, one connection each.

usage: python db_threads.py psycopg2|pymysql|mysqldb port threads queries
Prints one line of JSON: the seconds that the queries took, connecting left out.
"""

import json
import sys
import threading
import time

driver, port, threads, queries = sys.argv[1], *map(int, sys.argv[2:])

if driver == "psycopg2":
    import psycopg2

    def connect():
        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user="postgres", dbname="postgres"
        )
        connection.autocommit = True
        return connection

elif driver == "pymysql":
    import pymysql

    def connect():
        return pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True)

else:
    import MySQLdb

    def connect():
        return MySQLdb.connect(host="127.0.0.1", port=port, user="root", autocommit=True)


def work(cursor, times):
    for number in range(times):
        cursor.execute("select %s + 1", (number,))
        if cursor.fetchone()[0] != number + 1:
            raise SystemExit("wrong answer")


def run(cursor):
    work(cursor, 2)
    ready.wait()
    go.wait()
    work(cursor, queries // threads)


ready = threading.Barrier(threads + 1)
go = threading.Event()
cursors = [connect().cursor() for _ in range(threads)]
workers = [threading.Thread(target=run, args=(cursor,)) for cursor in cursors]
for worker in workers:
    worker.start()
ready.wait()
start, cpu = time.perf_counter(), time.process_time()
go.set()
for worker in workers:
    worker.join()
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - cpu}))
