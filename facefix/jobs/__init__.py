"""Many photos: walked, remembered, restored by several hands, and looked through afterwards.

    walk       which photos there are, in a stable order, and where the result of each goes
    rows       a photo as the walk meets it, and as the journal knows it
    journal    what became of each of them, in OUT/.facefix/journal.sqlite; database is the file under it
    files      files looked at before they are read, put in place in one step, and never outside of OUT
    looking    a claimed photo as it is now: hashed, and with what stands where its result is to go
    workers    one job in, one outcome out
    engines    who has jobs done: a thread of this process, or processes; cluster: Ray, whose workers are in actor
    drive      the run: meets, claims, hands out, records, and goes on after whatever happens
    kept       what is stored beside a result so that a face can be taken back; undo and verify use it
    review     the board on which a person looks through it all

Only the process that drives the run changes the journal. Nothing here loads torch before a photo is restored.
"""
