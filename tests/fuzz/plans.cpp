// The fuzzer of plans: draws problems, plans each in every way, and checks the plans. See docs/fuzzing.md.
// kUsage says how it is called.
//
// Cases are planned by child processes. One that dies, or that has not come back from a problem after 2 seconds of
// processor time, names its case, and the run goes on with the next. What fails is made smaller while it still fails.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>

#include "plans_plan.h"

namespace fuzz {
namespace {

constexpr const char* kUsage = R"(usage:
  plans [--count N] [--seconds S] [--seed X] [--start I] [--processes P] [--failures F]
      draws problems until one of these is reached (default: 10 seconds); the exit status is 1 if any failed
  plans --case "n=1 c=4 ... pass=forward"   plans one case again
  plans --file FILE                         the cases of a file, one a line
  plans --print < FILE                      every plan of the cases, in words
  plans --machines                          what it takes instruction sets for
)";

constexpr int64_t kPatience = 2000;             // ms of processor time that a problem may take
constexpr int64_t kShrinkPatience = 300;        // the same where a case is made smaller
constexpr int kShrinkSteps = 300, kKinds = 12;  // attempts to make a case smaller, for so many kinds of failures
constexpr int kSlowSteps = 40;                  // the same where each of them takes its time
constexpr int kMostFailures = 100000;

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count();
}

// Processor time, so that a busy machine is not taken for a plan that does not end.
int64_t cpu_ms(clockid_t clock) {
  timespec time{};
  return clock_gettime(clock, &time) == 0 ? int64_t(time.tv_sec) * 1000 + time.tv_nsec / 1000000 : 0;
}
int64_t cpu_ms_of(pid_t process) {
  clockid_t clock{};
  return clock_getcpuclockid(process, &clock) == 0 ? cpu_ms(clock) : 0;
}

// What a child writes and its parent reads, also after the child's end.
struct Shared {
  std::atomic<int64_t> index{-1}, since{0}, done{0};
  Findings findings;
  char rule[160] = "";
};
Shared* make_shared() {
  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  return new (memory) Shared;
}

struct Options {
  int64_t count = INT64_MAX, seconds = INT64_MAX, seed = 1, start = 0, processes = 1, failures = kMostFailures;
};

Case drawn(const Options& o, int64_t index) {
  Random random(uint64_t(o.seed) * 0xd1342543de82ef95u + uint64_t(index) * 0x2545f4914f6cdd1du);
  return draw(random);
}

std::string kind_of(const Case& c, const Stage& stage, const std::string& rule) {
  return std::string(stage.algorithm) + " (" + stage.device + ") " + kPassNames[int(c.pass)] + ": " + rule;
}

// The verdict on one case, by a child that may crash or hang: "" where nothing fails.
std::string verdict(const Case& c, int64_t patience, bool quiet) {
  static Shared* const shared = make_shared();
  shared->findings = Findings{};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (quiet) {
      const int nowhere = open("/dev/null", O_WRONLY);
      dup2(nowhere, 2);
    }
    plan_all(c, &shared->findings);
    _exit(0);
  }
  const int64_t begin = now_ms();
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (cpu_ms_of(child) > patience) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return kind_of(c, shared->findings.stage, "planning does not come back");
    }
    usleep(now_ms() - begin < 20 ? 200 : 5000);
  }
  if (WIFSIGNALED(status)) return kind_of(c, shared->findings.stage, strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) != 0) return kind_of(c, shared->findings.stage, "a sanitizer ends the process");
  if (shared->findings.rule == nullptr) return "";
  return kind_of(c, shared->findings.at, shared->findings.rule);
}

// Failures of one kind, whatever the instruction set.
std::string without_device(const std::string& kind) {
  const size_t open = kind.find(" ("), close = kind.find(") ");
  return open == std::string::npos ? kind : kind.substr(0, open) + kind.substr(close + 1);
}

// A case with smaller numbers that fails in the same way.
Case made_smaller(Case c, const std::string& kind) {
  int left = kind.find("come back") == std::string::npos ? kShrinkSteps : kSlowSteps;
  const auto fails = [&](Case smaller) {
    if (left <= 0 || !complete(&smaller.problem)) return false;
    --left;
    if (without_device(verdict(smaller, kShrinkPatience, true)) != without_device(kind)) return false;
    c = smaller;
    return true;
  };
  for (bool progress = true; progress && left > 0;) {
    progress = false;
    for (const auto field : {&ConvProblem::n, &ConvProblem::c, &ConvProblem::k, &ConvProblem::h, &ConvProblem::w,
                             &ConvProblem::r, &ConvProblem::s, &ConvProblem::stride_h, &ConvProblem::stride_w,
                             &ConvProblem::dilation_h, &ConvProblem::dilation_w, &ConvProblem::pad_top,
                             &ConvProblem::pad_bottom, &ConvProblem::pad_left, &ConvProblem::pad_right}) {
      const int64_t value = c.problem.*field;
      const int64_t low = field == &ConvProblem::pad_top || field == &ConvProblem::pad_bottom ||
                                  field == &ConvProblem::pad_left || field == &ConvProblem::pad_right
                              ? 0
                              : 1;
      const int64_t groups = field == &ConvProblem::c || field == &ConvProblem::k ? c.problem.groups : 1;
      for (const int64_t next : {low, groups, value / 2 / groups * groups, value - groups}) {
        if (next >= value || next < low) continue;
        Case smaller = c;
        smaller.problem.*field = next;
        if (fails(smaller)) {
          progress = true;
          break;
        }
      }
    }
    if (c.problem.groups > 1) {
      Case smaller = c;
      smaller.problem.c /= c.problem.groups;
      smaller.problem.k /= c.problem.groups;
      smaller.problem.groups = 1;
      progress = fails(smaller) || progress;
    }
    for (const DType dtype : {DType::Float32}) {
      if (c.problem.dtype == dtype) continue;
      Case smaller = c;
      smaller.problem.dtype = dtype;
      progress = fails(smaller) || progress;
    }
    if (c.problem.precision != Precision::Ieee) {
      Case smaller = c;
      smaller.problem.precision = Precision::Ieee;
      progress = fails(smaller) || progress;
    }
  }
  return c;
}

// Failures by their kinds: the first of each is made smaller and printed as a line that runs it again.
class Failures {
 public:
  void add(const Case& c, const std::string& kind, bool hopeful = true) {
    ++count_;
    const int64_t seen = ++kinds_[without_device(kind)];
    if (seen > 1) return;
    const Case smaller = hopeful && kinds_.size() <= size_t(kKinds) ? made_smaller(c, kind) : c;
    std::printf("FAILED %s\n  CASE=\"%s\"\n", kind.c_str(), text_of(smaller).c_str());
    std::fflush(stdout);
  }
  int64_t count() const { return count_; }
  void summarise() const {
    for (const auto& [kind, count] : kinds_) std::printf("%9lld  %s\n", static_cast<long long>(count), kind.c_str());
  }

 private:
  int64_t count_ = 0;
  std::map<std::string, int64_t> kinds_;
};

// A child plans every P-th problem from `first` on, and tells of each that fails through the pipe by its index.
struct Worker {
  Shared* shared = make_shared();
  pid_t process = -1;
  int pipe_end = -1;
  int64_t next = 0;

  void begin(const Options& o, int64_t end, int64_t until) {
    int ends[2];
    if (pipe(ends) != 0) std::abort();
    std::fflush(nullptr);
    shared->since = 0;
    process = fork();
    if (process == 0) {
      close(ends[0]);
      // What a sanitizer says is heard when its case is run once more.
      const int nowhere = open("/dev/null", O_WRONLY);
      dup2(nowhere, 2);
      Findings& findings = shared->findings;
      for (int64_t i = next; i < end; i += o.processes) {
        if (now_ms() >= until) break;
        shared->since = cpu_ms(CLOCK_PROCESS_CPUTIME_ID);
        shared->index = i;
        findings.rule = nullptr;
        plan_all(drawn(o, i), &findings);
        if (findings.rule != nullptr && write(ends[1], &i, sizeof(i)) != sizeof(i)) _exit(3);
        shared->done += 1;
      }
      shared->since = INT64_MAX;
      _exit(0);
    }
    close(ends[1]);
    pipe_end = ends[0];
    fcntl(pipe_end, F_SETFL, O_NONBLOCK);
  }
};

double percentile(const std::vector<Worker>& workers, double part) {
  int64_t all = 0, below = 0;
  for (const Worker& w : workers)
    for (const int64_t n : w.shared->findings.histogram) all += n;
  for (int i = 0; i < 512; ++i) {
    for (const Worker& w : workers) below += w.shared->findings.histogram[i];
    if (all > 0 && double(below) >= part * double(all)) return class_ns(i) / 1000;
  }
  return 0;
}

int run(const Options& o) {
  std::vector<Worker> workers(static_cast<size_t>(o.processes));
  Failures failures;
  const int64_t begin = now_ms(), until = o.seconds > INT64_MAX / 2000 ? INT64_MAX : begin + o.seconds * 1000;
  const int64_t end = o.count > INT64_MAX - o.start ? INT64_MAX : o.start + o.count;
  for (size_t i = 0; i < workers.size(); ++i) {
    workers[i].next = o.start + int64_t(i);
    workers[i].begin(o, end, until);
  }
  const auto done = [&] {
    int64_t sum = 0;
    for (const Worker& w : workers) sum += w.shared->done;
    return sum;
  };
  const auto progress = [&] {
    const double seconds = double(now_ms() - begin) / 1000;
    std::printf("%lld problems, %.0f a second, %lld failures\n", static_cast<long long>(done()),
                double(done()) / (seconds > 0 ? seconds : 1), static_cast<long long>(failures.count()));
    std::fflush(stdout);
  };
  int64_t spoken = begin;
  for (bool running = true; running && failures.count() < o.failures;) {
    running = false;
    usleep(20000);
    for (Worker& w : workers) {
      if (w.process < 0) continue;
      running = true;
      int status = 0;
      const bool ended = waitpid(w.process, &status, WNOHANG) == w.process;
      for (int64_t index; failures.count() < o.failures && read(w.pipe_end, &index, sizeof(index)) == sizeof(index);) {
        const Case c = drawn(o, index);
        std::string found = verdict(c, kPatience, true);
        if (found.empty()) found = "unknown (first run alone): a failure that does not come again";
        failures.add(c, found);
      }
      const bool hangs = !ended && cpu_ms_of(w.process) - kPatience > w.shared->since;
      if (!ended && !hangs) continue;
      if (hangs) {
        kill(w.process, SIGKILL);
        waitpid(w.process, &status, 0);
      }
      close(w.pipe_end);
      w.process = -1;
      if (!hangs && WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
      const int64_t index = w.shared->index;
      const Case c = drawn(o, index);
      const std::string why = hangs                 ? "planning does not come back"
                              : WIFSIGNALED(status) ? strsignal(WTERMSIG(status))
                                                    : "a sanitizer ends the process";
      failures.add(c, kind_of(c, w.shared->findings.stage, why));
      w.shared->done += 1;
      w.next = index + o.processes;
      w.begin(o, end, until);
    }
    if (now_ms() - spoken >= 10000) {
      progress();
      spoken = now_ms();
    }
  }
  for (const Worker& w : workers)
    if (w.process >= 0) {
      kill(w.process, SIGKILL);
      waitpid(w.process, nullptr, 0);
    }
  progress();
  int64_t plans = 0, steps = 0;
  for (const Worker& w : workers) {
    plans += w.shared->findings.plans;
    steps = std::max(steps, w.shared->findings.steps);
  }
  std::printf(
      "%lld plans; a choice with its plan takes %.1f us (median), %.1f us (99 %%), %.1f us (99.9 %%), %.1f us "
      "(99.99 %%); at most %lld steps\n",
      static_cast<long long>(plans), percentile(workers, 0.5), percentile(workers, 0.99), percentile(workers, 0.999),
      percentile(workers, 0.9999), static_cast<long long>(steps));
  failures.summarise();
  return failures.count() > 0 ? 1 : 0;
}

int run_cases(std::istream& lines) {
  int64_t count = 0, failed = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    ++count;
    const std::string found = verdict(case_of(line), kPatience, false);
    if (found.empty()) continue;
    ++failed;
    std::printf("FAILED %s\n  CASE=\"%s\"\n", found.c_str(), line.c_str());
  }
  std::printf("%lld cases, %lld failures\n", static_cast<long long>(count), static_cast<long long>(failed));
  return failed > 0 ? 1 : 0;
}

int print_machines() {
  for (const Machine& m : kMachines)
    std::cout << m.name << " " << m.vector_bytes << " " << m.registers << " " << m.fuses << " " << int(m.bf16_dot)
              << " " << m.caches.l1_bytes << " " << m.caches.l2_bytes << " " << m.caches.last_bytes << " "
              << m.rates.multiply_adds << " " << m.rates.loads << " " << m.rates.latency << " " << m.rates.l2_cycles
              << "\n";
  return 0;
}

int print_plans(std::istream& lines) {
  for (std::string line; std::getline(lines, line);) std::cout << line << "\n" << plans_in_words(case_of(line));
  return 0;
}

}  // namespace
}  // namespace fuzz

int main(int count, char** arguments) {
  fuzz::Options options;
  bool bounded = false;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--print") return fuzz::print_plans(std::cin);
    if (name == "--machines") return fuzz::print_machines();
    if (name == "--help" || name == "-h") return std::fputs(fuzz::kUsage, stdout) < 0;
    if (i + 1 == count) {
      std::fprintf(stderr, "%s wants a value, or is no option\n%s", name.c_str(), fuzz::kUsage);
      return 2;
    }
    const std::string value = arguments[++i];
    if (name == "--case") {
      std::istringstream line(value);
      return fuzz::run_cases(line);
    }
    if (name == "--file") {
      std::ifstream file(value);
      if (!file) {
        std::fprintf(stderr, "no such file: %s\n", value.c_str());
        return 2;
      }
      return fuzz::run_cases(file);
    }
    int64_t* const number = name == "--count"       ? &options.count
                            : name == "--seconds"   ? &options.seconds
                            : name == "--seed"      ? &options.seed
                            : name == "--start"     ? &options.start
                            : name == "--processes" ? &options.processes
                            : name == "--failures"  ? &options.failures
                                                    : nullptr;
    char* end = nullptr;
    if (number != nullptr) *number = std::strtoll(value.c_str(), &end, 10);
    if (number == nullptr || end == value.c_str() || *end != 0 || *number < (number == &options.processes)) {
      std::fprintf(stderr, "unknown option or value: %s %s\n%s", name.c_str(), value.c_str(), fuzz::kUsage);
      return 2;
    }
    bounded = bounded || number == &options.count || number == &options.seconds;
  }
  if (!bounded) options.seconds = 10;
  return fuzz::run(options);
}
