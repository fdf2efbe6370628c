/* The vCPU loop: accesses to plain registers are answered here, every other exit is Python's. */

/* A register, or a row of them, that reads what was last put into it and does nothing else. */
struct plain {
	uint64_t address;
	uint32_t size;	    /* bytes; an access may not reach beyond them */
	uint32_t width;	    /* the only width of an access that is answered, in bytes; 0 = any */
	uint8_t *bytes;	    /* little-endian, as the guest sees them */
	uint64_t *accesses; /* counts those that were answered */
	bool writable;	    /* by the guest; if not, a write is Python's */
};

/* The plain registers of one machine. */
struct plains;

/* NULL: no memory. */
struct plains *plains_open(void);
/* Replace them all: first those in port space, then those in memory, each part sorted by address. When this returns no
   vCPU touches the former ones. False: they are too many, and none is answered. */
bool plains_replace(struct plains *plains, const struct plain *registers, uint32_t ports, uint32_t pages);
void plains_close(struct plains *plains);

/* Run a vCPU until there is an exit for Python: 0, or the errno of KVM_RUN. *run* is its struct kvm_run. */
int vcpu_run(int fd, void *run, struct plains *plains);
